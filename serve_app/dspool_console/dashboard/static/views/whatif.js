// The last hour with other bounds: sliders ask the service to replay its policy.

import { get, poolPath, query } from "../api.js";
import { fill, h, later, say } from "../dom.js";
import { ownLinks } from "../export_links.js";
import { count, duration, percent } from "../format.js";
import { Plot } from "../plot.js";
import { Series } from "../series.js";

const WAIT_MS = 300;
const AGAIN_MS = 3000;

export class WhatIf {
  constructor(ctx, group) {
    this.ctx = ctx;
    this.sliders = new Map();
    this.form = h("form", { class: "sliders", "aria-label": "Other bounds" });
    this.form.addEventListener("submit", (event) => event.preventDefault());
    this.result = h("div", { "aria-live": "polite" });
    this.series = new Series();
    this.plot = new Plot(group, {
      title: "What if: size with other bounds",
      top: 2,
      format: (value) => (value % 1 ? value.toFixed(1) : count(value)),
      none: "Replaying the last hour",
      links: ownLinks("What if", "what-if", () => this.series, () => [group.from, group.to]),
      lines: [{ column: "actual", label: "as it was", colour: "--s4", stepped: true }, {
        column: "replayed",
        label: "replayed as configured",
        colour: "--s2",
        dash: [4, 3],
        stepped: true,
      }, { column: "whatif", label: "what if", colour: "--s1", stepped: true }],
    });
    this.plot.node.append(this.form, this.result);
    this.form.style.marginTop = this.result.style.marginTop = "14px";
    this.node = this.plot.node;
    this.ask = later(WAIT_MS, () => this.run());
  }

  start(bounds) {
    if (this.sliders.size) return;
    const top = Math.max(bounds.max_size * 2, bounds.max_size + 4);
    const rows = [
      ["min_size", "Smallest size", 1, top, 1, count],
      ["max_size", "Largest size", 1, top, 1, count],
      ["max_overflow", "Overflow workers", 0, Math.max(8, bounds.max_overflow * 2), 1, count],
      ["target_utilization", "Target utilization", 0.3, 0.95, 0.05, (value) => percent(value)],
      ["max_wait_s", "Longest wait", 0.01, 2, 0.01, duration],
    ];
    for (const [name, label, min, max, step, format] of rows) {
      const shown = h("b", {}, format(bounds[name]));
      const input = h("input", { type: "range", name, min, max, step, "aria-valuetext": format(bounds[name]) });
      input.value = bounds[name];
      input.addEventListener("input", () => {
        this.keepOrder(name);
        for (const slider of this.sliders.values()) slider.say();
        this.ask();
      });
      const tell = () => {
        say(shown, format(Number(input.value)));
        input.setAttribute("aria-valuetext", format(Number(input.value)));
      };
      this.sliders.set(name, { input, say: tell });
      this.form.append(h("label", { class: "field" }, h("span", {}, label, shown), input));
    }
    this.run();
  }

  keepOrder(moved) {
    const low = this.sliders.get("min_size").input;
    const high = this.sliders.get("max_size").input;
    if (Number(low.value) <= Number(high.value)) return;
    if (moved === "min_size") high.value = low.value;
    else low.value = high.value;
  }

  async run() {
    this.asking?.abort();
    clearTimeout(this.trying);
    const stop = (this.asking = new AbortController());
    const values = Object.fromEntries([...this.sliders].map(([name, { input }]) => [name, input.value]));
    try {
      const found = await get(poolPath(this.ctx.pool, "whatif") + query({ ...values, range: 3600 }), stop.signal);
      if (this.closed) return;
      this.series.load({
        at: found.at,
        columns: { actual: found.actual, replayed: found.replayed, whatif: found.whatif },
        resolution_s: found.step_s,
      });
      this.drawResult(found);
      this.draw();
    } catch (problem) {
      if (problem.name === "AbortError") return;
      this.plot.none.textContent = "Not replayed";
      fill(this.result, h("p", { class: "problem" }, problem.message));
      if (problem.temporary && !this.closed) this.trying = setTimeout(() => this.run(), AGAIN_MS);
    }
  }

  draw() {
    this.plot.take(this.series);
  }

  drawResult({ summary, model }) {
    const columns = [["As it was", summary.actual], ["As configured", summary.replayed], ["What if", summary.whatif]];
    const rows = [
      ["Worker-hours", "worker_hours", (value) => value.toFixed(2)],
      ["Mean size", "mean_size", (value) => value.toFixed(2)],
      ["Largest size", "max_size", count],
      ["Resizes", "resizes", count],
      ["Waited too long", "late_share", (value) => percent(value, 2)],
      ["Utilization", "utilization", (value) => percent(value)],
    ];
    const cell = (row, format, key) =>
      h("td", { class: "num" }, typeof row?.[key] === "number" ? format(row[key]) : "–");
    const table = h(
      "table",
      {},
      h("caption", { class: "for-readers" }, "What other bounds would have done"),
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          h("th", {}, h("span", { class: "for-readers" }, "Figure")),
          columns.map(([name]) => h("th", { scope: "col", class: "num" }, name)),
        ),
      ),
      h(
        "tbody",
        {},
        rows.map(([name, key, format]) =>
          h("tr", {}, h("th", { scope: "row" }, name), columns.map(([, row]) => cell(row, format, key)))
        ),
      ),
    );
    const scroller = h("div", { class: "scroll" }, table);
    scroller.style.marginBottom = "10px";
    fill(this.result, scroller, h("p", { class: "muted small" }, model));
  }

  close() {
    this.closed = true;
    clearTimeout(this.trying);
    this.asking?.abort();
  }
}
