// One operation as a waterfall: which part of it took how long, in which process.

import { get, poolPath } from "../api.js";
import { fill, h } from "../dom.js";
import { duration, plural, time } from "../format.js";
import { empty, facts, panel } from "../parts.js";
import { lane } from "../small_charts.js";

export const create = (ctx) => new Operation(ctx);

class Operation {
  constructor(ctx) {
    this.ctx = ctx;
    this.what = "the operation";
    this.node = h("div", { class: "stack" });
  }

  async load() {
    try {
      this.found = await get(poolPath(this.ctx.pool, "operations", this.ctx.arg));
    } catch (problem) {
      if (problem.status !== 404) throw problem;
      this.found = null;
    }
  }

  draw() {
    const back = h("p", {}, h("a", { href: this.ctx.href("operations") }, "All operations"));
    if (!this.found) {
      fill(this.node, back, h("section", { class: "panel" }, empty("No trace of this operation", "It was not traced, or its trace has been rotated away.")));
      return;
    }
    const { trace_id: trace, start, duration_s: whole, spans } = this.found;
    const rows = spans.map((span) => {
      const name = h("button", { type: "button", class: "quiet", "aria-expanded": "false" }, span.name);
      const about = h("div", { class: "about", hidden: true }, facts([["Process", span.process || "–"], ["Began", `${duration(span.start_s)} in`], ...Object.entries(span.attributes ?? {}).map(([key, value]) => [key, String(value)])]));
      about.style.gridColumn = "1 / -1";
      about.style.padding = "6px 0 12px";
      name.addEventListener("click", () => {
        about.hidden = !about.hidden;
        name.setAttribute("aria-expanded", String(!about.hidden));
      });
      const label = h("span", { class: "name", title: span.name }, name);
      label.style.paddingLeft = `${Math.min(span.depth, 8) * 14}px`;
      return h("li", { class: span.ok ? "" : "failed" }, label, lane(span.start_s, span.duration_s, whole || 1, `${span.name}: ${duration(span.duration_s)}, began ${duration(span.start_s)} in`), h("span", { class: "num" }, duration(span.duration_s)), about);
    });
    fill(
      this.node,
      back,
      h("div", { class: "head" }, h("h1", { class: "id" }, this.ctx.arg)),
      panel("Operation", {}, facts([["Began", time(start)], ["Took", duration(whole)], ["Spans", plural(spans.length, "span")], ["Trace", h("span", { class: "id" }, trace)]])),
      panel("Where the time went", {}, h("ol", { class: "waterfall" }, rows)),
    );
    this.node.querySelector(".head").style.marginBottom = "0";
  }
}
