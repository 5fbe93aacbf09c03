// The warm-up: steps down by worker as they happen, and the report of the last one.

import { begin, get, poolPath } from "../api.js";
import { actionButton } from "../dialog.js";
import { fill, h } from "../dom.js";
import { count, duration, percent } from "../format.js";
import { badge, empty, panel } from "../parts.js";

const MOST_WORKERS = 60;

export class Warmup {
  constructor(ctx) {
    this.ctx = ctx;
    this.workers = new Map();
    this.seen = -1;
    this.progress = h("div", {});
    this.report = h("div", {});
    const strategy = () =>
      h(
        "select",
        {},
        [["", "as configured"], ["staged", "staged: a canary first"], ["parallel", "parallel: all at once"], [
          "sequential",
          "sequential: one by one",
        ]].map(([value, text]) => h("option", { value }, text)),
      );
    const act = actionButton(ctx, {
      label: "Warm up now",
      quiet: false,
      ask: () => ({
        title: "Warm all workers up?",
        text: "Runs the steps of the warm-up on each worker again; they go on serving meanwhile.",
        verb: "Warm up",
        fields: [{ name: "strategy", label: "Strategy", input: strategy() }],
      }),
      run: async ({ strategy: chosen }) => {
        await begin(poolPath(ctx.pool, "warm"), { strategy: chosen || null });
        return "The warm-up has begun.";
      },
    });
    this.node = h(
      "div",
      { class: "stack" },
      panel("Warm-up progress", { actions: act }, this.progress),
      panel("Last warm-up by step", {}, this.report),
    );
  }

  async load() {
    const found = await get(poolPath(this.ctx.pool, "warmup"));
    this.steps = found.steps;
    this.last = found.report;
    this.workers.clear();
    this.seen = -1;
    this.follow(found.progress);
  }

  /** Applies moments; true when a warm-up ended with them. */
  follow(moments) {
    let ended = false;
    for (const moment of moments) {
      if (moment.sequence <= this.seen) continue;
      this.seen = moment.sequence;
      if (moment.kind === "begin" && !moment.worker_id) this.workers.clear();
      ended ||= moment.kind === "end" && !moment.worker_id;
      if (!moment.worker_id) continue;
      let worker = this.workers.get(moment.worker_id);
      if (!worker || moment.kind === "begin") {
        this.workers.set(moment.worker_id, worker = { steps: new Map(), error: "", total: moment.total, ended: false });
      }
      worker.total = moment.total || worker.total;
      if (moment.kind === "step") worker.steps.set(moment.index, { step: moment.step, error: moment.error });
      if (moment.kind === "end") worker.ended = true;
      if (moment.error) worker.error = moment.error;
    }
    return ended;
  }

  async moments(moments) {
    if (!this.follow(moments)) return;
    try {
      this.last = (await get(poolPath(this.ctx.pool, "warmup"))).report;
    } catch {
      return;
    }
    if (!this.closed) this.drawReport();
  }

  draw() {
    this.drawProgress();
    this.drawReport();
  }

  drawProgress() {
    const workers = [...this.workers];
    const sign = JSON.stringify([this.steps, workers.map(([id, one]) => [id, [...one.steps], one.error, one.ended])]);
    if (sign === this.progressSign) return;
    this.progressSign = sign;
    if (!workers.length) {
      fill(
        this.progress,
        empty(
          "Nothing warms up now",
          this.steps.length
            ? `Each worker runs ${this.steps.join(", ")} before it takes traffic; you see it here as it happens.`
            : "The warm-up of this pool has no steps beyond loading its programs.",
        ),
      );
      return;
    }
    const names = this.steps.length
      ? this.steps
      : [...new Set(workers.flatMap(([, one]) => [...one.steps.values()].map((run) => run.step)))];
    const mark = (one, index) => {
      const run = one.steps.get(index);
      const state = run ? (run.error ? "failed" : "ok") : one.steps.size === index && !one.ended ? "doing" : "";
      const text = { ok: "done", failed: `failed: ${run?.error}`, doing: "running", "": "to come" }[state];
      return h(
        "td",
        { class: "step" },
        h(
          "span",
          { class: `mark-step ${state}`, role: "img", "aria-label": text, title: text },
          { ok: "✓", failed: "!", doing: "…", "": "" }[state],
        ),
      );
    };
    const rows = workers.slice(-MOST_WORKERS).map(([id, one]) =>
      h(
        "tr",
        {},
        h("td", {}, h("a", { class: "id", href: this.ctx.href("workers", id) }, id)),
        names.map((_, index) => mark(one, index)),
        h("td", { class: "bad small" }, one.error),
      )
    );
    const table = h(
      "table",
      { class: "matrix" },
      h("caption", { class: "for-readers" }, "Steps done by worker"),
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          h("th", { scope: "col" }, "Worker"),
          names.map((name) => h("th", { scope: "col", class: "step" }, name)),
          h("th", { scope: "col" }, h("span", { class: "for-readers" }, "Error")),
        ),
      ),
      h("tbody", {}, rows),
    );
    fill(
      this.progress,
      h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Steps done by worker" }, table),
    );
  }

  drawReport() {
    const report = this.last;
    const sign = JSON.stringify(report);
    if (sign === this.reportSign) return;
    this.reportSign = sign;
    if (!report) {
      fill(this.report, empty("No report yet", "It is here when a warm-up of several workers has ended."));
      return;
    }
    const bad = report.workers_failed > 0;
    const names = ["Step", "Runs", "Failed", "Succeeded", "Mean", "p99", "Longest", "Last error"];
    const rows = report.steps.map((step) =>
      h(
        "tr",
        {},
        h("td", { class: "full" }, step.step),
        [
          count(step.count),
          count(step.failures),
          percent(step.success_rate),
          duration(step.mean_s),
          duration(step.p99_s),
          duration(step.max_s),
        ].map((text, index) => h("td", { class: "num", "data-label": names[index + 1] }, text)),
        h("td", { class: "full bad small" }, step.last_error),
      )
    );
    fill(
      this.report,
      h(
        "p",
        {},
        badge(bad ? "failed" : "ok", bad ? `${report.workers_failed} failed` : "all warm"),
        h(
          "span",
          { class: "muted" },
          ` ${report.workers_warm} warm, strategy ${report.strategy}${
            report.stages?.length ? ` in stages of ${report.stages.join(", ")}` : ""
          }${report.duration_s ? `, ${duration(report.duration_s)}` : ""}`,
        ),
        report.stopped ? h("span", { class: "bad" }, ` ${report.stopped}`) : null,
      ),
      h(
        "div",
        { class: "scroll" },
        h(
          "table",
          { class: "stacks" },
          h("caption", { class: "for-readers" }, "Steps of the last warm-up"),
          h(
            "thead",
            {},
            h(
              "tr",
              {},
              names.map((name, index) => h("th", { scope: "col", class: index > 0 && index < 7 ? "num" : "" }, name)),
            ),
          ),
          h("tbody", {}, rows),
        ),
      ),
    );
    this.report.firstChild.style.marginBottom = "10px";
  }
}
