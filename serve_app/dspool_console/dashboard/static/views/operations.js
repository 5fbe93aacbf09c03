// Operations that ended: searched and filtered as the address says. One of them: operation.js.

import { get, poolPath, query } from "../api.js";
import { fill, h } from "../dom.js";
import { count, duration, NONE, percent, plural, time } from "../format.js";
import { OperationFilter } from "../operation_filter.js";
import { badge, empty, failed } from "../parts.js";
import { RunningPanel } from "../running_panel.js";
import { Table } from "../table.js";
import { create as createOperation } from "./operation.js";

const AGAIN_MS = 4000;
const PHONE = "(max-width: 700px)";
const LONGEST_LIST = 500;

export const create = (ctx) => (ctx.arg ? createOperation(ctx) : new Operations(ctx));

class Operations {
  constructor(ctx) {
    this.ctx = ctx;
    this.what = "the operations";
    this.rows = [];
    this.page = matchMedia(PHONE).matches ? 25 : 50;
    this.filter = new OperationFilter(ctx, (asked) => this.ask(asked));
    this.table = new Table({
      label: "Operations",
      key: (row) => `${row.id} ${row.ended_at}`,
      columns: this.columns(),
      short: true,
      onsort: ({ key, down }) =>
        this.filter.set({ sort: key === "time" ? null : key, ascending: down ? null : "true" }),
    });
    this.running = new RunningPanel(ctx);
    this.told = h("span", { class: "muted", role: "status" });
    this.more = h("button", { type: "button", on: { click: () => this.next() } }, "Show more");
    this.nothing = h("div", {});
    this.below = h("div", { class: "foot" }, this.more);
    this.node = h(
      "div",
      { class: "stack" },
      h("div", { class: "head" }, h("h1", {}, "Operations"), this.told),
      this.running.node,
      this.filter.node,
      h("section", { class: "panel list", "aria-label": "Operations" }, this.table.node, this.nothing, this.below),
    );
  }

  columns() {
    const { ctx } = this;
    const link = (view, name) => (name ? h("a", { class: "id", href: ctx.href(view, name) }, name) : NONE);
    const choose = (name, value, text = value) =>
      value ? h("a", { href: ctx.href("operations", null, { ...this.filter.asked, [name]: value }) }, text) : NONE;
    const columns = [
      {
        key: "id",
        label: "Operation",
        plain: true,
        sign: (row) => row.id,
        cell: (row) => link("operations", row.id),
      },
      {
        key: "outcome",
        label: "Outcome",
        sign: (row) => [row.outcome, row.code, row.exception, row.at, this.filter.asked],
        cell: (row) =>
          row.outcome === "ok" ? badge("ok") : h(
            "span",
            { title: row.at ? `${row.exception} at ${row.at}` : row.code },
            h(
              "a",
              { href: ctx.href("operations", null, { ...this.filter.asked, error: row.exception ?? row.code }) },
              badge(row.outcome, row.exception ?? row.code ?? row.outcome),
            ),
          ),
      },
      {
        key: "program",
        label: "Program",
        sign: (row) => [row.program, row.version, this.filter.asked],
        cell: (row) =>
          h(
            "span",
            { class: "nowrap" },
            choose("program", row.program ?? row.command, row.program ?? row.command.replaceAll("_", " ")),
            row.version ? h("span", { class: "muted" }, ` v${row.version}`) : null,
          ),
      },
      { key: "time", label: "Ended", sort: true, sign: (row) => row.ended_at, cell: (row) => time(row.ended_at) },
      {
        key: "duration",
        label: "Total",
        num: true,
        sort: true,
        cell: (row) => duration(row.duration_s),
      },
      { key: "wait", label: "Wait", num: true, rare: true, cell: (row) => duration(row.wait_s) },
      { key: "run", label: "Run", num: true, rare: true, cell: (row) => duration(row.run_s) },
      { key: "attempts", label: "Tries", num: true, rare: true, cell: (row) => count(row.attempts) },
      {
        key: "worker",
        label: "Worker",
        rare: true,
        sign: (row) => row.worker,
        cell: (row) => link("workers", row.worker),
      },
      {
        key: "session",
        label: "Session",
        rare: true,
        sign: (row) => [row.session, row.session_hash, this.filter.asked],
        cell: (row) =>
          row.session
            ? choose("session", row.session)
            : choose("session_hash", row.session_hash, row.session_hash?.slice(0, 12)),
      },
    ];
    if (ctx.admin) {
      columns.push({
        key: "principal",
        label: "Caller",
        rare: true,
        sign: (row) => [row.principal, this.filter.asked],
        cell: (row) => choose("principal", row.principal),
      });
    }
    return columns;
  }

  path(more = {}) {
    return poolPath(this.ctx.pool, "operations") + query({ limit: this.page, ...this.filter.asked, ...more });
  }

  async load() {
    const turn = (this.turn = Symbol("ask"));
    const found = await get(this.path());
    if (this.turn !== turn) return;
    this.take(found, found.operations);
    if (!this.poll) this.running.load().catch(() => {});
    this.poll ??= setInterval(() => this.again(), AGAIN_MS);
  }

  take(found, rows) {
    this.found = found;
    this.rows = rows;
    this.cursor = found.next_cursor;
  }

  /** The address or a field says something else. */
  async ask() {
    try {
      await this.load();
    } catch (problem) {
      this.refused(problem);
      return;
    }
    if (!this.closed) this.draw();
  }

  refused(problem) {
    if (this.closed) return;
    this.table.node.hidden = this.below.hidden = true;
    fill(this.nothing, failed(problem, () => this.ask()));
  }

  /** What is new: from the newest that is shown on, so that looking costs little however much is kept. */
  async again() {
    const { asked } = this.filter;
    this.times = (this.times ?? 0) + 1;
    // It asks every worker: not as often as the list, which is one short question.
    if (!document.hidden && this.times % 3 === 0) this.running.load().catch(() => {});
    if (document.hidden || asked.sort || asked.ascending || asked.to || !this.found) return;
    const turn = this.turn;
    const newest = this.rows[0]?.ended_at ?? 0;
    try {
      // Clients send what ended a moment later, each in its own time.
      const fresh = await get(this.path({ range: null, from: Math.max(0, newest - 5), limit: 100 }));
      if (this.turn !== turn || this.closed) return;
      const known = new Set(this.rows.map(this.table.key));
      const added = fresh.operations.filter((row) => !known.has(this.table.key(row)));
      if (fresh.next_cursor) return this.ask();
      Object.assign(this.found, { kept: fresh.kept, left_out: fresh.left_out, oldest_at: fresh.oldest_at });
      this.rows = [...added, ...this.rows].sort((one, other) => other.ended_at - one.ended_at).slice(0, LONGEST_LIST);
      this.draw();
    } catch {
      // The stream says when the service is away.
    }
    return undefined;
  }

  async next() {
    const before = this.rows;
    try {
      const found = await get(this.path({ cursor: this.cursor }));
      this.take(found, [...before, ...found.operations]);
    } catch (problem) {
      return this.refused(problem);
    }
    return this.draw();
  }

  draw() {
    const { kept, oldest_at: oldest, left_out: leftOut, sampling } = this.found;
    const { asked } = this.filter;
    this.filter.draw();
    this.table.order = { key: asked.sort ?? "time", down: !asked.ascending };
    this.table.showOrder();
    this.table.show(this.rows);
    this.table.node.hidden = !this.rows.length;
    this.below.hidden = !this.cursor;
    const since = oldest ? [", the oldest from ", time(oldest)] : [];
    const lost = leftOut ? `, ${plural(leftOut, "more was", "more were")} not kept` : "";
    const sign = `${kept} ${oldest} ${leftOut}`;
    if (this.sign !== sign) fill(this.told, `${plural(kept, "operation")} kept`, since, lost);
    this.sign = sign;
    this.told.title = `${percent(sampling, sampling < 0.1 ? 1 : 0)} of the operations are traced`;
    if (this.rows.length) return fill(this.nothing);
    const why = Object.keys(asked).length
      ? empty(
        "No operation fits",
        "None that is kept fits all that you ask for.",
        h("a", { class: "button", href: this.ctx.href("operations") }, "Show all operations"),
      )
      : empty("No operations yet", "They appear here as they end.");
    return fill(this.nothing, why);
  }

  /** The address changed within this view: back, forward, or a link. */
  moved() {
    this.filter.read();
    return this.ask();
  }

  close() {
    this.closed = true;
    clearInterval(this.poll);
  }
}
