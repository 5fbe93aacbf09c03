// How large the pool is and why: decisions with their numbers, load against size, and the last hour with other bounds.

import { get, poolPath, query, send } from "../api.js";
import { actionButton } from "../dialog.js";
import { fill, h } from "../dom.js";
import { ownLinks } from "../export_links.js";
import { count, duration, percent, time } from "../format.js";
import { badge, empty, facts, panel } from "../parts.js";
import { Plot } from "../plot.js";
import { PlotGroup } from "../plot_group.js";
import { Series } from "../series.js";
import { Table } from "../table.js";
import { WhatIf } from "./whatif.js";

const HOUR = 3600;
const SEEN = 300;

export const create = (ctx) => new Sizing(ctx);

class Sizing {
  constructor(ctx) {
    this.ctx = ctx;
    this.what = "sizing";
    this.topics = ["sizing", "events"];
    this.load_ = new Series();
    this.group = new PlotGroup();
    this.group.onzoom = () => this.drawCharts();
    this.plot = new Plot(this.group, {
      title: "Load against size, last hour",
      top: 2,
      format: (value) => (value % 1 ? value.toFixed(1) : count(value)),
      links: ownLinks("Load against size", "load", () => this.load_, () => [this.group.from, this.group.to]),
      lines: [{ column: "slots", label: "slots available", colour: "--s4", stepped: true }, {
        column: "demand",
        label: "running and waiting",
        colour: "--s2",
      }, { column: "load", label: "slots in use", colour: "--s1", under: true }],
    });
    this.whatif = new WhatIf(ctx, this.group);
    this.bounds = h("div", {});
    this.table = new Table({ label: "Decisions", key: began, columns: COLUMNS, page: 25 });
    this.nothing = h("div", {});
    this.actions = h("div", { class: "push" });
    this.node = h(
      "div",
      { class: "stack" },
      h("div", { class: "head" }, h("h1", {}, "Sizing"), this.status = h("span", {}), this.actions),
      panel("Bounds", {}, this.bounds),
      this.plot.node,
      this.whatif.node,
      panel("Decisions", {}, this.table.node, this.nothing),
    );
    this.node.querySelector(".head").style.marginBottom = "0";
  }

  async load() {
    const { pool, data } = this.ctx;
    const decisions = get(poolPath(pool, "decisions") + query({ limit: SEEN }));
    await data.loadHistory(HOUR);
    this.decisions = (await decisions).decisions;
    this.unread = true;
  }

  draw() {
    const { decisions } = this;
    const { data } = this.ctx;
    const { pool } = data.overview;
    const enabled = pool.sizing_enabled;
    const would = enabled ? null : decisions.find((row) => row.source === "dry run");
    if (this.unread) {
      this.unread = false;
      const { at, columns, resolution } = data.series;
      this.load_.load({ ...loadOf({ at, columns: Object.fromEntries(columns) }, pool), resolution_s: resolution });
      this.whatif.start(pool);
    }
    fill(this.status, badge(enabled ? "ok" : "paused", enabled ? "sizes itself" : "fixed size: the optimizer is off"));
    fill(
      this.bounds,
      facts([
        ["Desired now", count(pool.desired)],
        ["Taking traffic", count(pool.actual)],
        ...(would ? [["Sizing would have", count(would.target + would.overflow)]] : []),
        ["Smallest", count(pool.min_size)],
        ["Largest", count(pool.max_size)],
        ["Overflow", `up to ${count(pool.max_overflow)}`],
        ["Target utilization", percent(pool.target_utilization)],
        ["Longest wait", duration(pool.max_wait_s)],
        ["Grows again after", duration(pool.grow_cooldown_s)],
        ["Shrinks again after", duration(pool.shrink_cooldown_s)],
      ]),
    );
    if (this.paused !== pool.paused) this.drawActions(pool);
    this.table.show(decisions);
    this.table.node.hidden = !decisions.length;
    fill(
      this.nothing,
      decisions.length ? null : empty(
        "No decision yet",
        enabled
          ? "The first comes as soon as there is something to measure."
          : "The optimizer is switched off; sizes set by hand appear here, and what it would have done.",
      ),
    );
    this.drawCharts();
  }

  drawActions(pool) {
    const { ctx } = this;
    this.paused = pool.paused;
    const size = () =>
      h("input", {
        type: "number",
        min: pool.min_size,
        max: pool.max_size,
        value: ctx.data.overview.pool.desired,
        required: true,
      });
    const flip = pool.paused ? "resume" : "pause";
    fill(
      this.actions,
      actionButton(ctx, {
        label: "Resize",
        quiet: false,
        ask: () => ({
          title: "Resize the pool?",
          text: "Sets the number of workers. With the optimizer on, the next decision may change it again.",
          verb: "Resize",
          fields: [{
            name: "size",
            label: `Workers, ${pool.min_size} to ${pool.max_size}`,
            input: size(),
          }],
        }),
        run: async ({ size: wanted }) =>
          `The pool goes to ${
            (await send("POST", poolPath(ctx.pool, "resize"), { size: Number(wanted) })).desired
          } workers.`,
      }),
      actionButton(ctx, {
        label: pool.paused ? "Resume the pool" : "Pause the pool",
        quiet: false,
        ask: () => (pool.paused ? { title: "Resume the pool?", text: "It takes operations again.", verb: "Resume" } : {
          title: "Pause the pool?",
          text: "New operations are refused until it is resumed; those it has finish.",
          verb: "Pause",
          danger: true,
        }),
        run: async () => ((await send("POST", poolPath(ctx.pool, flip))).paused
          ? "The pool is paused."
          : "The pool takes operations again."),
        done: () =>
          ctx.refresh(),
      }),
    );
  }

  drawCharts() {
    const now = this.ctx.data.now;
    this.group.frame(now, HOUR);
    this.group.markers = this.ctx.data.markers.filter((marker) => marker.kind === "resize");
    this.plot.take(this.load_);
    this.whatif.draw();
  }

  live(kind, frame) {
    if (kind === "sizing") {
      const rows = new Map(this.decisions.map((row) => [began(row), row]));
      for (const row of frame.decisions) rows.set(began(row), row);
      this.decisions = [...rows.values()].sort((a, b) => began(b) - began(a)).slice(0, SEEN);
    }
    if (kind === "tick" && frame.points) this.load_.append(loadOf(frame.points, this.ctx.data.overview.pool));
    if (kind !== "event") this.draw();
  }

  close() {
    this.whatif.close();
    this.group.close();
  }
}

/** A decision that comes out the same again is still the same row. */
const began = (row) => row.since || row.at;

/** Slots there are, slots in use, and what runs and waits, from the columns of history. */
function loadOf({ at, columns }, pool) {
  const of = (name, index) => columns[name]?.[index] ?? 0;
  const slots = at.map((_, index) => of("size", index) * (pool.slots_per_worker ?? 1));
  return {
    at,
    columns: {
      load: slots.map((number, index) => number * of("utilization", index)),
      slots,
      demand: at.map((_, index) => of("running", index) + of("queue_depth", index)),
    },
  };
}

const numbers = (row) =>
  Object.entries(row.numbers ?? {}).map(([name, value]) =>
    `${name.replaceAll("_", " ")} ${Math.round(value * 1000) / 1000}`
  ).join(", ");

const SOURCES = { manual: "by hand ", "dry run": "dry run: " };

const COLUMNS = [
  {
    key: "at",
    label: "When",
    sign: (row) => [row.at, row.times],
    cell: (row) =>
      h("span", {}, time(row.at), row.times > 1 ? h("span", { class: "muted small" }, ` ×${row.times}`) : null),
  },
  {
    key: "action",
    label: "Decision",
    sign: (row) => row.action,
    cell: (row) => badge(row.action === "hold" ? "info" : "starting", row.action),
  },
  {
    key: "size",
    label: "Size",
    num: true,
    cell: (row) =>
      (row.previous === row.target ? count(row.target) : `${row.previous} → ${row.target}`) +
      (row.overflow ? ` +${row.overflow}` : ""),
  },
  {
    key: "reason",
    label: "Reason",
    full: true,
    sign: (row) => [row.reason, row.source],
    cell: (row) => h("span", {}, SOURCES[row.source] ? h("b", {}, SOURCES[row.source]) : null, row.reason),
  },
  {
    key: "numbers",
    label: "Numbers",
    full: true,
    sign: numbers,
    cell: (row) => h("span", { class: "muted small" }, numbers(row) || "–"),
  },
];
