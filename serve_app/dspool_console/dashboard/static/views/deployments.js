// Versions of the pool's programs, a deployment on its way with its canary, and the warm-up by worker and step.

import { get, poolPath, query, send } from "../api.js";
import { actionButton } from "../dialog.js";
import { fill, h } from "../dom.js";
import { count, duration, percent, time } from "../format.js";
import { badge, bar, empty, facts, panel } from "../parts.js";
import { Warmup } from "./warmup.js";

export const create = (ctx) => new Deployments(ctx);

class Deployments {
  constructor(ctx) {
    this.ctx = ctx;
    this.what = "warm-up and deployments";
    this.topics = ["warmup"];
    this.deployment = h("div", {});
    this.programs = h("div", { class: "scroll" });
    this.warmup = new Warmup(ctx);
    this.node = h(
      "div",
      { class: "stack" },
      h("div", { class: "head" }, h("h1", {}, "Warm-up and deployments")),
      panel("Deployment", {}, this.deployment),
      panel("Programs and their versions", {}, this.programs),
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
    this.rollout = rollouts[0] ?? null;
  }

  draw() {
    fill(
      this.deployment,
      this.rollout ? this.deploymentOf(this.rollout) : empty(
        "No deployment yet",
        "Put a new version of a program in place with `dspool deploy`, and follow it here.",
      ),
    );
    this.drawPrograms();
    this.warmup.draw();
  }

  deploymentOf(one) {
    const done = one.workers_total ? one.workers_done / one.workers_total : 0;
    const progress = bar(
      done,
      `${one.workers_done} of ${one.workers_total} workers`,
      ["failed", "rolled back"].includes(one.phase),
    );
    progress.classList.add("wide");
    const compared = one.old || one.new;
    return [
      facts([
        ["Program", h("span", { class: "id" }, one.program)],
        ["Version", one.previous ? `v${one.previous} → v${one.version}` : `v${one.version}`],
        ["Phase", badge(one.phase)],
        ["Began", time(one.began_at)],
        ["Ended", one.ended_at ? time(one.ended_at) : "still going on"],
        ["Canary", one.canary ? h("a", { class: "id", href: this.ctx.href("workers", one.canary) }, one.canary) : "–"],
      ]),
      one.reason
        ? h("p", { class: ["failed", "rolled back"].includes(one.phase) ? "bad" : "muted" }, one.reason)
        : null,
      h(
        "div",
        { class: "progress" },
        h("span", { class: "muted small" }, `${one.workers_done} of ${one.workers_total} workers have it`),
        progress,
      ),
      compared ? this.comparison(one) : null,
    ].map((part) => {
      if (part instanceof HTMLElement) part.style.marginBottom = "10px";
      return part;
    });
  }

  comparison({ old, new: fresh, version, previous, canary_s: watched }) {
    const rate = (side) => (side?.operations ? percent(side.errors / side.operations, 2) : "–");
    const rows = [["Operations", (side) => count(side?.operations)], ["Errors", (side) => count(side?.errors)], [
      "Error rate",
      rate,
    ], ["Mean run time", (side) => duration(side?.run_s)]];
    return h(
      "div",
      { class: "scroll" },
      h(
        "table",
        {},
        h("caption", { class: "for-readers" }, "The canary against the version before"),
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            h("th", { scope: "col" }, `Canary, watched for ${duration(watched)}`),
            h("th", { scope: "col", class: "num" }, previous ? `v${previous}, before` : "Before"),
            h("th", { scope: "col", class: "num" }, `v${version}, canary`),
          ),
        ),
        h(
          "tbody",
          {},
          rows.map(([name, of]) =>
            h(
              "tr",
              {},
              h("th", { scope: "row" }, name),
              h("td", { class: "num" }, of(old)),
              h("td", { class: "num" }, of(fresh)),
            )
          ),
        ),
      ),
    );
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
            deployment.version === program.version ? null : this.rollBack(program, deployment.version),
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

  rollBack({ program, version: current }, version) {
    const { ctx } = this;
    return actionButton(ctx, {
      label: version < current ? "Roll back to this" : "Go to this",
      ask: () => ({
        title: `Go to version ${version} of ${program}?`,
        text: `All workers load version ${version} in place of version ${current}. ` +
          "Operations that run finish with the version they began with.",
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
