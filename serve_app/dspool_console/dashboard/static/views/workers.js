// All workers, a row each: what its slots run, what it has done, how much memory it takes. worker.js shows one in full.

import { get, poolPath, query } from "../api.js";
import { h } from "../dom.js";
import { age, ago, count, duration, megabytes, percent, plural, rate } from "../format.js";
import { badge, empty, segments } from "../parts.js";
import { slotCells } from "../small_charts.js";
import { Table } from "../table.js";
import { EndedTable } from "./ended_workers.js";
import { workerActions } from "./worker_actions.js";
import { create as createWorker } from "./worker.js";

const CELLS_MS = 2000;
const PAGE = 50;

export const create = (ctx) => (ctx.arg ? createWorker(ctx) : new Workers(ctx));

class Workers {
  constructor(ctx) {
    this.ctx = ctx;
    this.what = "the workers";
    this.topics = ["workers"];
    this.rows = new Map();
    this.running = {};
    this.filter = "all";
    this.search = "";
    this.table = new Table({
      label: "Workers",
      key: (row) => row.id,
      columns: this.columns(),
      sort: { key: "slot", down: false },
      page: PAGE,
    });
    this.table.node.classList.add("dense");
    this.table.onpage = () => this.ask();
    this.nothing = h("div", { hidden: true });
    this.ended = new EndedTable(ctx);
    this.count = h("span", { class: "muted", role: "status" });
    const find = h("input", {
      type: "search",
      placeholder: "Find by id, node or reason",
      "aria-label": "Find workers",
      on: { input: (event) => this.look(event.target.value) },
    });
    this.node = h(
      "div",
      { class: "stack" },
      h(
        "div",
        { class: "head" },
        h("h1", {}, "Workers"),
        this.count,
        h(
          "div",
          { class: "push" },
          find,
          segments(
            "Show",
            "which",
            [["all", "All"], ["busy", "Busy"], ["trouble", "In trouble"]],
            "all",
            (value) => this.pick(value),
          ),
        ),
      ),
      h("section", { class: "panel", "aria-label": "Workers" }, this.table.node, this.nothing),
      this.ended.node,
    );
    this.node.querySelector(".head").style.marginBottom = "0";
    this.table.node.style.marginTop = "-14px";
  }

  columns() {
    const { ctx } = this;
    return [
      {
        key: "slot",
        label: "Worker",
        plain: true,
        full: true,
        sort: (row) => row.slot,
        sign: (row) => [row.id, row.overflow],
        cell: (row) =>
          h(
            "span",
            { class: "worker" },
            h("a", { class: "id", href: ctx.href("workers", row.id) }, row.id),
            row.overflow ? h("span", { class: "muted small" }, " overflow") : null,
          ),
      },
      {
        key: "state",
        label: "State",
        sort: (row) => row.state,
        sign: (row) => [row.state, row.reason, row.trouble],
        cell: (row) =>
          h(
            "span",
            { title: row.trouble || row.reason || null },
            badge(row.state),
            row.trouble ? h("span", { class: "bad small" }, ` ${row.trouble}`) : null,
          ),
      },
      {
        key: "running",
        label: "Slots",
        sort: (row) => row.running,
        sign: (row) => [row.slots, row.running, this.running[row.id]?.operations],
        cell: (row) => slotCells(row.slots, row.running, this.running[row.id]?.operations),
      },
      {
        key: "utilization",
        label: "Used",
        num: true,
        sort: (row) => row.utilization,
        cell: (row) => percent(row.utilization),
      },
      {
        key: "throughput",
        label: "Throughput",
        num: true,
        sort: (row) => row.throughput,
        cell: (row) => rate(row.throughput),
      },
      { key: "p99", label: "p99", num: true, sort: (row) => row.p99_s, cell: (row) => duration(row.p99_s) },
      {
        key: "sessions",
        label: "Sessions",
        num: true,
        sort: (row) => row.sessions,
        cell: (row) => count(row.sessions),
      },
      {
        key: "operations",
        label: "Operations",
        num: true,
        sort: (row) => row.operations,
        cell: (row) => count(row.operations),
      },
      {
        key: "errors",
        label: "Errors",
        num: true,
        sort: (row) => row.errors,
        sign: (row) => row.errors,
        cell: (row) => h("span", { class: row.errors ? "bad" : "" }, count(row.errors)),
      },
      {
        key: "memory",
        label: "RSS / PSS / USS",
        num: true,
        title: "Memory: resident; proportional, with shared pages divided; unique, what would be free if it ended",
        sort: (row) => row.rss_mb,
        cell: (row) => this.memory(row),
      },
      { key: "age", label: "Age", num: true, sort: (row) => -row.started_at, cell: (row) => age(row.started_at) },
      { key: "checked", label: "Checked", num: true, title: "Last health check", cell: (row) => ago(row.checked_at) },
      {
        key: "actions",
        label: "Actions",
        full: true,
        sign: (row) => row.state,
        cell: (row) => h("span", { class: "nowrap" }, workerActions(ctx, row)),
      },
    ];
  }

  memory(row) {
    const { rss_mb: rss = row.rss_mb || null, pss_mb: pss, uss_mb: uss } = this.running[row.id]?.memory ?? {};
    return pss ? `${rss.toFixed(0)} / ${pss.toFixed(0)} / ${megabytes(uss)}` : megabytes(rss);
  }

  async all() {
    const rows = [];
    let cursor = null;
    do {
      const page = await get(poolPath(this.ctx.pool, "workers") + query({ limit: 1000, cursor }));
      rows.push(...page.workers);
      this.endedRows = page.ended;
      cursor = page.next_cursor;
    } while (cursor);
    return rows;
  }

  async load() {
    this.rows = new Map((await this.all()).map((row) => [row.id, row]));
    this.poll ??= setInterval(() => this.ask(), CELLS_MS);
  }

  look(text) {
    this.search = text.trim().toLowerCase();
    this.table.first = 0;
    this.draw();
    this.ask();
  }

  pick(which) {
    this.filter = which;
    this.table.first = 0;
    this.draw();
    this.ask();
  }

  wanted(row) {
    if (this.filter === "busy" && !row.running) return false;
    if (this.filter === "trouble" && !row.trouble) return false;
    return !this.search || [row.id, row.node, row.reason].some((text) => text?.toLowerCase().includes(this.search));
  }

  draw() {
    const all = [...this.rows.values()];
    const rows = all.filter((row) => this.wanted(row));
    this.ended.show(this.endedRows ?? []);
    this.table.show(rows);
    this.table.node.hidden = !rows.length;
    this.nothing.hidden = rows.length > 0;
    if (!rows.length) {
      this.nothing.replaceChildren(
        all.length
          ? empty("No worker fits", "Show all, or look for something else.")
          : empty("No workers", "The pool is starting, or was scaled to nothing. Workers appear here as they start."),
      );
    }
    const busy = all.reduce((sum, row) => sum + row.running, 0);
    const text = `${plural(all.length, "worker")}, ${count(busy)} of ${
      count(all.reduce((sum, row) => sum + row.slots, 0))
    } slots busy`;
    if (this.count.textContent !== text) this.count.textContent = text;
    if (!this.asked) this.ask();
  }

  /** What the rows in view run, and their memory: asked of the workers themselves, so only for those. */
  async ask() {
    if (document.hidden) return;
    const ids = this.table.seen.filter((row) => !["starting", "stopped", "failed"].includes(row.state)).map((row) =>
      row.id
    ).slice(0, 64);
    this.asked = true;
    if (!ids.length || this.asking) return;
    this.asking = true;
    try {
      const { workers } = await get(poolPath(this.ctx.pool, "running") + query({ workers: ids.join(",") }));
      for (const [id, found] of Object.entries(workers)) if (found) this.running[id] = found;
      if (!this.closed) this.table.show(this.table.rows);
    } catch {
      // What is older stays; the banner says when the service is gone.
    } finally {
      this.asking = false;
    }
  }

  live(kind, frame) {
    if (kind !== "workers") return;
    for (const row of frame.changed ?? []) this.rows.set(row.id, row);
    for (const id of frame.gone ?? []) this.rows.delete(id);
    if (frame.gone?.length) this.load().then(() => this.closed || this.draw(), () => {});
    this.draw();
  }

  close() {
    this.closed = true;
    clearInterval(this.poll);
  }
}
