// Traced operations: the newest, the slowest, the failed by type. One of them as a tree of spans: operation.js.

import { get, poolPath } from "../api.js";
import { fill, h } from "../dom.js";
import { count, duration, percent, plural, time } from "../format.js";
import { badge, empty, panel } from "../parts.js";
import { Table } from "../table.js";
import { create as createOperation } from "./operation.js";

const AGAIN_MS = 4000;

export const create = (ctx) => (ctx.arg ? createOperation(ctx) : new Operations(ctx));

class Operations {
  constructor(ctx) {
    this.ctx = ctx;
    this.what = "the operations";
    this.slowest = new Table({
      label: "Slowest operations",
      key: (row) => row.trace_id,
      columns: this.columns(),
      sort: { key: "duration", down: true },
      page: 10,
    });
    this.recent = new Table({
      label: "Recent operations",
      key: (row) => row.trace_id,
      columns: this.columns(),
      sort: { key: "at", down: true },
      page: 20,
    });
    this.errors = h("div", {});
    this.told = h("span", { class: "muted" });
    this.opened = new Set();
    this.tables = h(
      "div",
      { class: "stack" },
      panel("Errors by type", {}, this.errors),
      panel("Slowest", {}, this.slowest.node),
      panel("Recent", {}, this.recent.node),
    );
    this.nothing = h("div", {});
    this.node = h(
      "div",
      { class: "stack" },
      h("div", { class: "head" }, h("h1", {}, "Operations"), this.told),
      this.nothing,
      this.tables,
    );
    this.node.querySelector(".head").style.marginBottom = "0";
  }

  columns() {
    const { ctx } = this;
    return [
      {
        key: "id",
        label: "Operation",
        plain: true,
        full: true,
        sign: (row) => row.trace_id,
        cell: (row) => h("a", { class: "id", href: ctx.href("operations", row.trace_id) }, row.id),
      },
      { key: "at", label: "Ended", sort: (row) => row.at, sign: (row) => row.at, cell: (row) => time(row.at) },
      { key: "program", label: "Program", cell: (row) => row.program ?? row.command },
      {
        key: "outcome",
        label: "Outcome",
        sort: (row) => row.outcome,
        sign: (row) => [row.outcome, row.code],
        cell: (row) => badge(row.outcome, row.code ?? row.outcome),
      },
      {
        key: "duration",
        label: "Total",
        num: true,
        sort: (row) => row.duration_s,
        cell: (row) => duration(row.duration_s),
      },
      { key: "wait", label: "Wait", num: true, sort: (row) => row.wait_s, cell: (row) => duration(row.wait_s) },
      { key: "run", label: "Run", num: true, sort: (row) => row.run_s, cell: (row) => duration(row.run_s) },
      {
        key: "attempts",
        label: "Attempts",
        num: true,
        sort: (row) => row.attempts,
        cell: (row) => count(row.attempts),
      },
      {
        key: "worker",
        label: "Worker",
        sign: (row) => row.worker,
        cell: (row) => (row.worker ? h("a", { class: "id", href: ctx.href("workers", row.worker) }, row.worker) : "–"),
      },
    ];
  }

  async load() {
    this.found = await get(poolPath(this.ctx.pool, "operations"));
    this.poll ??= setInterval(() => this.again(), AGAIN_MS);
  }

  async again() {
    if (document.hidden) return;
    try {
      await this.load();
    } catch {
      return;
    }
    if (!this.closed) this.draw();
  }

  draw() {
    const { tracing, sampling, recent, slowest, errors } = this.found;
    const share = tracing
      ? `${percent(sampling, sampling < 0.1 ? 1 : 0)} of the operations are traced`
      : "Tracing is switched off";
    if (this.told.textContent !== share) this.told.textContent = share;
    const none = !recent.length && !slowest.length && !errors.length;
    this.tables.hidden = none;
    const why = !tracing
      ? "Tracing is switched off for this pool; set telemetry.sampling above 0 to see operations here."
      : "A share of the operations is traced; they appear here as they end.";
    fill(this.nothing, none ? h("section", { class: "panel" }, empty("No operations", why)) : null);
    if (none) return;
    this.slowest.show(slowest);
    this.recent.show(recent);
    this.drawErrors(errors);
  }

  drawErrors(errors) {
    const sign = JSON.stringify(errors);
    if (sign === this.errorSign) return;
    this.errorSign = sign;
    fill(
      this.errors,
      errors.length
        ? errors.map((group) => {
          const examples = group.examples.map((row) =>
            h(
              "li",
              {},
              h("a", { class: "id", href: this.ctx.href("operations", row.trace_id) }, row.id),
              ` ${row.program ?? row.command}, ${duration(row.duration_s)}, `,
              time(row.at),
            )
          );
          const block = h(
            "details",
            { open: this.opened.has(group.code) },
            h(
              "summary",
              {},
              h("span", { class: "bad mono" }, group.code),
              ` ${plural(group.count, "operation")}`,
              group.last_at ? h("span", { class: "muted" }, ", last ", time(group.last_at)) : null,
            ),
            examples.length
              ? h("ul", { class: "small" }, examples)
              : h("p", { class: "muted small" }, "None of them was traced."),
          );
          block.addEventListener(
            "toggle",
            () => (block.open ? this.opened.add(group.code) : this.opened.delete(group.code)),
          );
          return block;
        })
        : h("p", { class: "muted" }, "No operation has failed."),
    );
  }

  close() {
    this.closed = true;
    clearInterval(this.poll);
  }
}
