// The pool at a glance: health in words, cards, charts with one cursor, and the figures as a table.

import { Problem } from "../api.js";
import { fill, h, say } from "../dom.js";
import { intervalOf, servedLinks } from "../export_links.js";
import { count, duration, NONE, percent, rate, time } from "../format.js";
import { badge, panel } from "../parts.js";
import { Plot } from "../plot.js";
import { PlotGroup } from "../plot_group.js";
import { Ring } from "../small_charts.js";
import { Table } from "../table.js";
import { Truth } from "../truth.js";
import { ERROR_RATE, LATENCY, THROUGHPUT, UTILIZATION } from "./charts.js";
import { Cards } from "./overview_cards.js";

const AGAIN_MS = 5000;

export const create = (ctx) => new Overview(ctx);

class Overview {
  constructor(ctx) {
    this.ctx = ctx;
    this.what = "the overview";
    this.eager = true;
    this.rerange = true;
    this.topics = ["events"];
    this.cards = new Cards();
    this.ring = new Ring();
    this.status = h("div", {});
    this.partsList = h("ul", { class: "parts" });
    this.notice = h("div", {});
    this.truth = new Truth(ctx);
    this.group = new PlotGroup(ctx, () => this.zoomed());
    this.unzoom = h("span", { class: "zoomed", hidden: true });
    this.showZoom();
    const target = ctx.data.overview?.pool.target_utilization ?? 0.7;
    this.plots = PLOTS(target).map(({ chart, ...about }) =>
      new Plot(this.group, {
        ...about,
        links: servedLinks(ctx, about.title, chart, () => intervalOf(this.group, ctx.range())),
      })
    );
    this.title = h("h1", {}, ctx.pool);
    this.programs = new Table({
      label: "Programs",
      key: (row) => row.name,
      columns: PROGRAM_COLUMNS,
      sort: { key: "throughput", down: true },
    });
    this.programs.node.classList.add("dense");
    this.details = h("div", { class: "scroll details" });
    this.node = h(
      "div",
      { class: "stack" },
      h("div", { class: "head" }, this.title, this.status, h("div", { class: "push" }, this.unzoom)),
      this.truth.node,
      this.notice,
      h(
        "div",
        { class: "summary" },
        panel(
          "Health",
          { class: "healthy" },
          h("div", { class: "score" }, this.ring.node, this.verdict = h("div", {})),
          this.partsList,
        ),
        this.cards.node,
      ),
      h("div", { class: "plots" }, this.plots.map((plot) => plot.node)),
      h("div", { class: "columns" }, panel("Programs", {}, this.programs.node), panel("Details", {}, this.details)),
    );
    this.node.querySelector(".head").style.marginBottom = "0";
  }

  load() {
    return this.isAsked ? this.loadCharts() : Promise.resolve();
  }

  /** Asked once the figures stand: days of points take the service longer than what is now, and would delay it. */
  beginCharts() {
    if (this.isAsked) return;
    this.isAsked = true;
    this.loadCharts().then(() => {
      // Where the figures are not there yet, they bring the charts along.
      if (this.node.isConnected) this.drawCharts();
      performance.mark("history");
    }, (problem) => this.without(problem));
  }

  async loadCharts() {
    await this.ctx.data.loadHistory(this.ctx.span());
    this.missing = null;
    this.node.dataset.charts = "drawn";
  }

  /** What is there of the charts stays, and they are asked for again. */
  without(problem) {
    if (!(problem instanceof Problem)) throw problem;
    this.missing = { problem, again: Date.now() + AGAIN_MS };
    if (this.ctx.data.overview) this.draw();
  }

  async zoomed() {
    this.showZoom();
    await this.load();
    this.drawCharts();
  }

  showZoom() {
    const { zoom } = this.group;
    this.unzoom.hidden = !zoom;
    if (zoom) {
      fill(
        this.unzoom,
        h("span", { class: "muted" }, time(zoom[0]), " to ", time(zoom[1])),
        h("button", { type: "button", on: { click: () => this.group.zoomTo(null) } }, "Reset zoom"),
      );
    }
  }

  moved() {
    this.group.moved();
  }

  draw() {
    const { overview } = this.ctx.data;
    const { pool, health, now } = overview;
    fill(
      this.status,
      // The state of a pool in trouble may be "ready": green beside it would say that all is well.
      pool.state === "ready" ? null : badge(pool.paused ? "paused" : pool.state ?? "unknown"),
      badge(overview.diagnosis?.state ?? "unknown"),
      pool.reason ? h("span", { class: "muted" }, ` ${pool.reason}`) : null,
    );
    this.cards.show(overview);
    this.truth.show(overview.diagnosis);
    this.drawHealth(health, overview.diagnosis);
    this.drawNotice(pool, now);
    this.programs.show(overview.programs);
    this.drawDetails(overview);
    this.drawCharts();
    this.beginCharts();
  }

  drawCharts() {
    const { data } = this.ctx;
    const range = this.ctx.range();
    this.group.frame(data.now, range);
    this.cards.draw(data.series, data.now - range, data.now);
    this.group.draw(data.series, data.markers);
  }

  drawHealth(health, diagnosis) {
    const sign = JSON.stringify([health, diagnosis?.sentence]);
    if (sign === this.healthSign) return;
    this.healthSign = sign;
    const starts = health?.state === "starting";
    this.ring.draw(starts ? null : health?.score ?? null, health?.state);
    fill(
      this.verdict,
      health ? badge(health.state) : badge("unknown"),
      h("p", { class: "muted small" }, `${diagnosis?.sentence ?? "Nothing is measured at the moment"}.`),
    );
    fill(
      this.partsList,
      (health?.parts ?? []).map((part) =>
        h(
          "li",
          { class: part.cost >= 0.05 ? "costs" : "" },
          h("span", { class: "cost" }, part.cost >= 0.05 ? `−${part.cost.toFixed(1)}` : "0"),
          h("span", {}, part.sentence),
        )
      ),
    );
  }

  drawNotice(pool, now) {
    const text = !pool.metrics
      ? "Metrics are switched off for this pool (enable_metrics): there are no figures, only workers and sessions."
      : !now
      ? "The metrics actor does not answer; figures come back by themselves when it does. Operations are not affected."
      : this.missing
      ? `The charts are not complete: ${this.missing.problem.message}`
      : "";
    if (this.noticeSign === text) return;
    this.noticeSign = text;
    fill(this.notice, text ? h("div", { class: "bannered", role: "status" }, text) : null);
    for (const note of this.notice.children) note.style.marginTop = "0";
    this.notice.hidden = !this.notice.children.length;
  }

  drawDetails({ now, pool, totals, telemetry }) {
    const n = now ?? {};
    const outcomes = Object.entries(totals?.by_outcome ?? {}).map((
      [name, value],
    ) => [`Ended: ${name.replace("_", " ")}`, count(value)]);
    const rows = [
      [
        "Workers",
        `${count(pool.actual)} of ${count(pool.desired)}, bounds ${count(pool.min_size)} to ${count(pool.max_size)}`,
      ],
      ["Active, idle, starting", `${count(n.active)}, ${count(n.idle)}, ${count(n.starting)}`],
      ["Slots a worker", count(pool.slots_per_worker)],
      ["Wait mean, p95, p99", `${duration(n.wait_mean_s)}, ${duration(n.wait_p95_s)}, ${duration(n.wait_p99_s)}`],
      ["Queue limit", count(pool.max_queue)],
      ...outcomes,
      ["Clients", count(n.clients)],
      ["Workers lost since the start", count(pool.failures)],
      ["Samples dropped", count((telemetry?.dropped ?? 0) + (telemetry?.unattributed ?? 0))],
      ["Figures are of the last", duration(n.window_s)],
    ];
    if (!this.detailCells) {
      this.detailCells = new Map();
      this.detailBody = h("tbody", {});
      fill(this.details, h("table", {}, h("caption", { class: "for-readers" }, "The pool's figures"), this.detailBody));
    }
    for (const [name, text] of rows) {
      let cell = this.detailCells.get(name);
      if (!cell) {
        cell = h("td", { class: "num" });
        this.detailCells.set(name, cell);
        this.detailBody.append(h("tr", {}, h("th", { scope: "row" }, name), cell));
      }
      say(cell, text ?? NONE);
    }
  }

  live(kind) {
    if (this.missing?.again < Date.now()) {
      this.missing.again = Infinity;
      this.loadCharts().catch((problem) => this.without(problem));
    }
    if (kind === "tick" || kind === "event") this.draw();
  }

  close() {
    this.group.close();
  }
}

const PROGRAM_COLUMNS = [
  {
    key: "name",
    label: "Program",
    plain: true,
    full: true,
    cell: (row) =>
      h(
        "span",
        {},
        h("span", { class: "id program" }, row.name),
        row.kind === "session" ? h("span", { class: "muted small" }, " of sessions") : null,
      ),
    sign: (row) => [row.name, row.kind],
    sort: (row) => row.name,
  },
  { key: "version", label: "Version", num: true, cell: (row) => (row.version ? `v${row.version}` : NONE) },
  {
    key: "throughput",
    label: "Throughput",
    num: true,
    cell: (row) => rate(row.throughput),
    sort: (row) => row.throughput,
  },
  { key: "p50", label: "p50", num: true, cell: (row) => duration(row.p50_s), sort: (row) => row.p50_s },
  { key: "p99", label: "p99", num: true, cell: (row) => duration(row.p99_s), sort: (row) => row.p99_s },
  {
    key: "errors",
    label: "Error rate",
    num: true,
    cell: (row) => percent(row.error_rate, 2),
    sort: (row) => row.error_rate,
  },
  {
    key: "operations",
    label: "Operations",
    num: true,
    cell: (row) => count(row.operations),
    sort: (row) => row.operations,
  },
];

const whole = (value) => (Number.isInteger(value) ? count(value) : "");

const PLOTS = (target) => [
  { ...UTILIZATION, band: [target - 0.1, target + 0.1] },
  THROUGHPUT,
  LATENCY,
  ERROR_RATE,
  {
    chart: "queue",
    title: "Queue",
    top: 5,
    format: (value) => (Number.isInteger(value) || value >= 10 ? count(Math.round(value)) : value.toFixed(1)),
    lines: [{ column: "queue_depth", label: "waiting", colour: "--s1", under: true }, {
      column: "running",
      label: "running",
      colour: "--s4",
    }],
  },
  {
    chart: "wait",
    title: "Wait for a slot",
    format: duration,
    lines: [{ column: "wait_mean_s", label: "mean", colour: "--s2" }, {
      column: "wait_p95_s",
      label: "p95",
      colour: "--s1",
    }, { column: "wait_p99_s", label: "p99", colour: "--s3" }],
  },
  {
    chart: "size",
    title: "Size",
    top: 2,
    format: (value) => whole(Math.round(value * 10) / 10) || value.toFixed(1),
    lines: [
      { column: "desired", label: "desired", colour: "--s4", dash: [4, 3], stepped: true },
      { column: "size", label: "actual", colour: "--s1", stepped: true },
      { column: "spare", label: "spare", colour: "--s5", stepped: true },
      { column: "overflow", label: "overflow", colour: "--s2", stepped: true },
    ],
  },
  {
    chart: "tokens",
    title: "Tokens",
    format: (value) => rate(value),
    lines: [{ column: "input_tokens", label: "read", colour: "--s2" }, {
      column: "output_tokens",
      label: "written",
      colour: "--s1",
    }],
  },
];
