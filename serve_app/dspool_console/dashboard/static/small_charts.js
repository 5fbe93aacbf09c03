// Pictures of a few points, as SVG: sparkline, gauge, ring, slot cells, the rows of a waterfall.

import { h, say, set, svg } from "./dom.js";
import { duration, percent } from "./format.js";

const WIDE = 120;
const HIGH = 30;

export class Sparkline {
  constructor(label) {
    this.line = svg("path", {});
    this.under = svg("path", { class: "under" });
    this.node = svg(
      "svg",
      { class: "spark", viewBox: `0 0 ${WIDE} ${HIGH}`, preserveAspectRatio: "none", role: "img", "aria-label": label },
      this.under,
      this.line,
    );
  }

  draw(series, column, from, to, top = 0) {
    const points = series.thin(column, from, to, WIDE / 2).filter((point) =>
      point.x >= from && Number.isFinite(point.y)
    );
    const most = Math.max(top, 1e-9, ...points.map((point) => point.y));
    const x = (at) => (((at - from) / (to - from)) * WIDE).toFixed(1);
    const y = (value) => (HIGH - 2 - (value / most) * (HIGH - 4)).toFixed(1);
    const path = points.map((point, index) => `${index ? "L" : "M"}${x(point.x)} ${y(point.y)}`).join("");
    set(this.line, "d", path || "M0 0");
    set(
      this.under,
      "d",
      points.length > 1 ? `${path}L${x(points[points.length - 1].x)} ${HIGH}L${x(points[0].x)} ${HIGH}Z` : "M0 0",
    );
  }
}

const RADIUS = 46;
const arc = (from, to) => {
  const place = (share) =>
    `${(60 - RADIUS * Math.cos(Math.PI * share)).toFixed(2)} ${(60 - RADIUS * Math.sin(Math.PI * share)).toFixed(2)}`;
  return `M${place(from)}A${RADIUS} ${RADIUS} 0 0 1 ${place(to)}`;
};

/** Half a circle from 0 to 100 %, with the band that the pool should stay in. */
export class Gauge {
  constructor(label) {
    this.label = label;
    this.length = Math.PI * RADIUS;
    this.value = svg("path", { class: "value", d: arc(0, 1), "stroke-dasharray": this.length.toFixed(1) });
    this.band = svg("path", { class: "band" });
    this.text = svg("text", { x: 60, y: 57 });
    this.node = svg(
      "svg",
      { class: "gauge", viewBox: "4 2 112 62", role: "img" },
      svg("path", { class: "track", d: arc(0, 1) }),
      this.value,
      this.band,
      this.text,
    );
  }

  draw(share, [low, high]) {
    const known = typeof share === "number";
    this.value.style.strokeDashoffset = (this.length * (1 - Math.min(1, known ? share : 0))).toFixed(1);
    const bandRadius = 54;
    const place = (part) =>
      `${(60 - bandRadius * Math.cos(Math.PI * part)).toFixed(2)} ${
        (60 - bandRadius * Math.sin(Math.PI * part)).toFixed(2)
      }`;
    set(this.band, "d", `M${place(low)}A${bandRadius} ${bandRadius} 0 0 1 ${place(high)}`);
    say(this.text, percent(known ? share : null));
    this.node.classList.toggle("bad", known && share >= 0.95);
    set(this.node, "aria-label", `${this.label} ${percent(share)}; the band is ${percent(low)} to ${percent(high)}`);
  }
}

export class Ring {
  constructor() {
    this.length = 2 * Math.PI * 40;
    this.value = svg("circle", {
      class: "value",
      cx: 50,
      cy: 50,
      r: 40,
      transform: "rotate(-90 50 50)",
      "stroke-dasharray": this.length.toFixed(1),
    });
    this.text = svg("text", { x: 50, y: 59 });
    this.node = svg(
      "svg",
      { class: "ring", viewBox: "0 0 100 100", role: "img" },
      svg("circle", { cx: 50, cy: 50, r: 40 }),
      this.value,
      this.text,
    );
  }

  draw(score, state) {
    const known = typeof score === "number";
    this.value.style.strokeDashoffset = (this.length * (1 - (known ? score : 0) / 100)).toFixed(1);
    // Rounded down: 100 is said of a pool that nothing is wrong with.
    say(this.text, known ? String(Math.floor(score)) : "–");
    set(this.node, "class", `ring ${{ impaired: "warn", unhealthy: "bad", healthy: "good" }[state] ?? "none"}`);
    set(this.node, "aria-label", known ? `Health ${score.toFixed(1)} of 100, ${state}` : "Health is not known");
  }
}

const MOST_CELLS = 32;
const LONG_S = 10;

/** The slots of a worker: a filled cell runs something. `cells` null: nobody has asked the worker yet. */
export function slotCells(slots, running, cells) {
  const busy = cells ?? new Array(Math.min(running, slots)).fill(null);
  const shown = Math.min(slots, MOST_CELLS);
  const squares = Array.from({ length: shown }, (_, index) => {
    if (index >= busy.length) return h("i", {});
    const cell = busy[index];
    return h("i", { class: cell && cell.held_s > LONG_S ? "on long" : "on", title: cell ? cellText(cell) : "running" });
  });
  const label = `${busy.length} of ${slots} slots busy`;
  return h(
    "span",
    { class: "cells", role: "img", "aria-label": label, title: busy.length ? null : label },
    squares,
    slots > shown ? h("span", { class: "more" }, `+${slots - shown}`) : null,
  );
}

export const cellText = (cell) =>
  [cell.program ?? cell.command, cell.session && `session ${cell.session}`, `for ${duration(cell.held_s)}`].filter(
    Boolean,
  ).join(", ");

/** One stretch of a longer time, as a lane. */
export function lane(start, length, whole, label) {
  const block = h("i", {});
  block.style.left = `${Math.min(99.5, (start / whole) * 100)}%`;
  block.style.width = `${Math.min(100, (length / whole) * 100)}%`;
  return h("span", { class: "lane", role: "img", "aria-label": label, title: label }, block);
}
