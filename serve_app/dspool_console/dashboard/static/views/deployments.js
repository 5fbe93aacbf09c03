// Versions of the pool's programs, a deployment on its way with its canary, and the warm-up by worker and step.

import { get, poolPath, query, send } from "../api.js";
import { actionButton } from "../dialog.js";
import { fill, h } from "../dom.js";
import { badge, empty, panel } from "../parts.js";
import { Table } from "../table.js";
import { compareButton } from "./compare_versions.js";
import { deployButton } from "./deploy_form.js";
import { HISTORY, rolloutParts } from "./rollouts.js";
import { Warmup } from "./warmup.js";

export const create = (ctx) => new Deployments(ctx);

class Deployments {
  constructor(ctx) {
    this.ctx = ctx;
    this.what = "warm-up and deployments";
    this.topics = ["warmup"];
    this.deployment = h("div", {});
    this.programs = h("div", { class: "scroll" });
    this.history = new Table({
      label: "Last deployments",
      key: (row) => `${row.program} ${row.began_at}`,
      columns: HISTORY,
      page: 10,
    });
    this.noHistory = h("div", {});
    this.warmup = new Warmup(ctx);
    const deploy = deployButton(ctx, {
      programs: () => this.versions.map((one) => one.program),
      moment: (rollout) => this.moment(rollout),
    });
    this.node = h(
      "div",
      { class: "stack" },
      h("div", { class: "head" }, h("h1", {}, "Warm-up and deployments"), h("div", { class: "push" }, deploy)),
      panel("Deployment", {}, this.deployment),
      panel("Programs and their versions", {}, this.programs),
      panel("Last deployments", {}, this.history.node, this.noHistory),
      this.warmup.node,
    );
    this.node.querySelector(".head").style.marginBottom = "0";
  }

  async load() {
    const [{ programs }, { rollouts }] = await Promise.all([
      get(poolPath(this.ctx.pool, "programs") + query({ limit: 1000 })),
      get(poolPath(this.ctx.pool, "rollouts")),
      this.warmup.load(),
    ]);
    this.versions = programs;
    this.rollouts = rollouts;
    this.rollout = rollouts[0] ?? null;
  }

  draw() {
    const sign = JSON.stringify([this.rollout, this.versions.map((one) => [one.program, one.version])]);
    if (sign !== this.rolloutSign) {
      this.rolloutSign = sign;
      fill(
        this.deployment,
        this.rollout ? rolloutParts(this.ctx, this.rollout, this.wayBack(this.rollout)) : empty(
          "No deployment yet",
          "Put a new version of a program in place with “Deploy”, or with `dspool deploy`, and follow it here.",
        ),
      );
    }
    this.history.show(this.rollouts);
    this.history.node.hidden = !this.rollouts.length;
    fill(this.noHistory, this.rollouts.length ? null : empty("Nothing deployed yet", ""));
    this.drawPrograms();
    this.warmup.draw();
  }

  /** From the version that was deployed last to the one before, as long as it is the current one. */
  wayBack({ program, version, previous, phase }) {
    const known = this.versions.find((one) => one.program === program);
    if (phase !== "done" || known?.version !== version || !known.versions.includes(previous)) return null;
    const verb = previous < version ? "Roll back" : "Go";
    return h("p", {}, this.rollBack(known, previous, `${verb} to v${previous}`, false));
  }

  /** A moment of the deployment that this page began. */
  moment(rollout) {
    this.rollout = rollout;
    if (rollout.ended_at) this.ctx.refresh();
    else this.draw();
  }

  drawPrograms() {
    const programs = this.versions;
    const sign = JSON.stringify(programs);
    if (sign === this.sign) return;
    this.sign = sign;
    if (!programs.length) {
      return fill(
        this.programs,
        empty("No programs", "This pool has no program of its own; sessions may still have theirs."),
      );
    }
    const rows = programs.flatMap((program) =>
      program.deployments.map((deployment, index) =>
        h(
          "tr",
          {},
          h("td", { class: "full" }, index ? null : h("span", { class: "id" }, program.program)),
          h(
            "td",
            { "data-label": "Version" },
            `v${deployment.version} `,
            deployment.version === program.version ? badge("live", "current") : null,
          ),
          h("td", { "data-label": "From" }, deployment.kind.replace("_", " ")),
          h("td", { class: "full", "data-label": "What" }, h("span", { class: "id" }, deployment.summary)),
          h(
            "td",
            { class: "full num" },
            deployment.version === program.version ? null : [
              compareButton(this.ctx, program, deployment.version),
              this.rollBack(program, deployment.version),
            ],
          ),
        )
      )
    );
    const names = ["Program", "Version", "From", "What", "Actions"];
    return fill(
      this.programs,
      h(
        "table",
        { class: "stacks" },
        h("caption", { class: "for-readers" }, "Programs and their versions"),
        h(
          "thead",
          {},
          h("tr", {}, names.map((name, index) => h("th", { scope: "col", class: index === 4 ? "num" : "" }, name))),
        ),
        h("tbody", {}, rows),
      ),
    );
  }

  rollBack(
    { program, version: current },
    version,
    label = version < current ? "Roll back to this" : "Go to this",
    quiet = true,
  ) {
    const { ctx } = this;
    return actionButton(ctx, {
      label,
      quiet,
      ask: () => ({
        title: `Go to version ${version} of ${program}?`,
        text:
          `All workers answer with version ${version} in place of version ${current}, at once and without a trial. ` +
          "Operations that run finish with the version they began with; nothing is lost, and version " +
          `${current} stays to go back to.`,
        verb: version < current ? "Roll back" : "Go",
        danger: version < current,
      }),
      run: async () =>
        `${program} is at version ${
          (await send("POST", poolPath(ctx.pool, "programs", program, "rollback"), { version })).version
        }.`,
      done: () => ctx.refresh(),
    });
  }

  live(kind, frame) {
    if (kind !== "warmup") return;
    this.warmup.moments(frame.progress ?? []);
    const { deployment } = frame;
    if (deployment) {
      const over = deployment.ended_at !== null;
      this.rollout = deployment;
      if (over && this.over !== deployment.began_at) {
        this.over = deployment.began_at;
        this.ctx.refresh();
        return;
      }
    }
    this.draw();
  }

  close() {
    this.warmup.closed = true;
  }
}
