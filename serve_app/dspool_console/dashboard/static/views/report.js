// Some time to take away: one HTML file that opens offline, and the numbers of each chart.

import { poolPath, query } from "../api.js";
import { fill, h } from "../dom.js";
import { CHARTS, tableLink } from "../export_links.js";
import { panel, segments } from "../parts.js";
import { RANGES } from "../shell.js";

const CHOICES = [...RANGES, ["86400", "24 h"], ["own", "Choose…"]];

export const create = (ctx) => new Report(ctx);

class Report {
  constructor(ctx) {
    this.ctx = ctx;
    this.what = "the report";
    this.chosen = "3600";
    const now = Date.now();
    this.from = h("input", {
      type: "datetime-local",
      step: 1,
      value: local(now - 3600_000),
      on: { input: () => this.draw() },
    });
    this.to = h("input", { type: "datetime-local", step: 1, value: local(now), on: { input: () => this.draw() } });
    this.own = h(
      "div",
      { class: "head", hidden: true },
      h("label", { class: "field" }, h("span", {}, "From"), this.from),
      h("label", { class: "field" }, h("span", {}, "To"), this.to),
    );
    this.problem = h("p", { class: "problem", role: "alert" });
    this.report = h("a", { class: "button", download: true }, "Download the report");
    this.list = h("ul", { class: "exports" });
    this.node = h(
      "div",
      { class: "stack" },
      h("div", { class: "head" }, h("h1", {}, "Report and export")),
      panel(
        "Time range",
        {},
        segments("Time range of the report", "report-range", CHOICES, this.chosen, (value) => this.pick(value)),
        this.own,
        this.problem,
      ),
      panel(
        "Report",
        {},
        h(
          "p",
          { class: "muted" },
          "One HTML file with the pool's figures, charts, events and alerts of that time. It needs no network: " +
            "keep it with an incident or send it by mail.",
        ),
        this.report,
      ),
      panel("Numbers of the charts", {}, this.list),
    );
    this.node.querySelector(".head").style.marginBottom = "0";
    this.own.style.margin = "12px 0 0";
    this.report.style.marginTop = "12px";
  }

  async load() {}

  pick(value) {
    this.chosen = value;
    this.draw();
  }

  interval() {
    if (this.chosen !== "own") return { range: this.chosen };
    const [from, to] = [this.from, this.to].map((input) => Date.parse(input.value) / 1000);
    return from < to ? { from, to } : null;
  }

  draw() {
    this.own.hidden = this.chosen !== "own";
    const interval = this.interval();
    fill(this.problem, interval ? null : "The beginning must be before the end.");
    if (interval) this.report.setAttribute("href", poolPath(this.ctx.pool, "report") + query(interval));
    else this.report.removeAttribute("href");
    fill(
      this.list,
      Object.keys(CHARTS).map((chart) =>
        h(
          "li",
          {},
          chart === "all" ? "everything" : chart,
          h(
            "span",
            {},
            ["csv", "json"].map((format) => {
              const label = `${chart} as ${format.toUpperCase()}`;
              const link = h("a", { class: "button quiet", "aria-label": label }, format.toUpperCase());
              if (interval) tableLink(link, this.ctx.pool, chart, format, interval);
              return link;
            }),
          ),
        )
      ),
    );
  }

  live() {}
}

const local = (at) => {
  const date = new Date(at);
  return new Date(at - date.getTimezoneOffset() * 60_000).toISOString().slice(0, 19);
};
