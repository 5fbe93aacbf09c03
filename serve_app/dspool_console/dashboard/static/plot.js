// One line chart on Chart.js: its group shares cursor and zoom, the legend shows values, markers are drawn.

import { fill, h, say, svg } from "./dom.js";
import { clock, NONE, shortClock } from "./format.js";
import { chartLibrary, inTurn } from "./plot_group.js";

const AXIS = 60;
const RIGHT = 10;
const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400];
const MARKERS = { resize: "--s5", death: "--s-bad", alert: "--s-bad", deployment: "--s1", recovery: "--s4" };
const NEAR = 6;

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

export class Plot {
  /** `lines`: [{column, label, colour: "--s1", dash?, under?, scale?, stepped?}]; `format(value)` for people. */
  constructor(
    group,
    { title, lines, format, top = null, band = null, links = null, none = "Nothing measured in this time" },
  ) {
    Object.assign(this, { group, title, lines, format, top, band });
    this.values = lines.map(() => h("b", {}, NONE));
    const legend = h(
      "ul",
      { class: "legend" },
      lines.map((line, index) => h("li", {}, swatch(line), line.label, this.values[index])),
    );
    this.canvas = h("canvas", { "aria-hidden": "true" });
    this.line = h("div", { class: "cursor", hidden: true });
    this.chosen = h("div", { class: "chosen", hidden: true });
    this.tip = h("div", { class: "tip", hidden: true });
    this.none = h("div", { class: "none", hidden: true }, none);
    this.box = h(
      "div",
      {
        class: "canvas",
        tabindex: "0",
        role: "slider",
        "aria-label": `${title}, time under the cursor`,
        "aria-valuemin": 0,
        "aria-valuemax": 0,
        "aria-valuenow": 0,
        "aria-valuetext": "no data yet",
      },
      this.canvas,
      this.line,
      this.chosen,
      this.none,
      this.tip,
    );
    const heading = h("h2", {}, title);
    this.node = h(
      "section",
      { class: "panel plot", "aria-label": title },
      h("header", {}, heading, links && h("div", { class: "push" }, links)),
      legend,
      this.box,
    );
    this.listen();
    this.seen = true;
    this.watch = new IntersectionObserver(([entry]) => {
      this.seen = entry.isIntersecting;
      if (this.seen && this.waiting) inTurn(this.job);
    });
    this.watch.observe(this.box);
    this.job = () => this.paint();
    group.plots.add(this);
  }

  take(series) {
    this.series = series;
    this.waiting = true;
    this.readout();
    if (this.seen && !document.hidden) inTurn(this.job);
  }

  async paint() {
    if (this.closed) return;
    this.waiting = false;
    const { from, to } = this.group;
    const width = Math.max(60, this.box.clientWidth - AXIS - RIGHT);
    const data = this.lines.map((line) => this.series.thin(line.column, from, to, width, line.scale));
    this.none.hidden = data.some((points) => points.length > 0);
    if (!this.chart) {
      if (this.making) return;
      this.making = true;
      try {
        this.make(await chartLibrary());
      } catch (failed) {
        say(this.none, failed.message);
        this.none.hidden = false;
        return;
      } finally {
        this.making = false;
      }
      if (this.closed) return this.close();
      return inTurn(this.job);
    }
    const { chart } = this;
    chart.data.datasets.forEach((dataset, index) => (dataset.data = data[index]));
    chart.options.scales.x.min = from;
    chart.options.scales.x.max = to;
    chart.update("none");
  }

  make(Chart) {
    if (this.closed) return;
    this.pickColours();
    const { from, to } = this.group;
    const axisFont = { size: 11, family: style("--sans") };
    this.chart = new Chart(this.canvas, {
      type: "line",
      data: {
        datasets: this.lines.map((line) => ({
          data: [],
          label: line.label,
          fill: line.under ? "origin" : false,
          stepped: line.stepped ? "before" : false,
          borderDash: line.dash ?? [],
        })),
      },
      options: {
        animation: false,
        parsing: false,
        normalized: true,
        responsive: true,
        maintainAspectRatio: false,
        events: [],
        layout: { padding: { top: 6, right: RIGHT } },
        elements: {
          line: { borderWidth: 1.6, borderJoinStyle: "round" },
          point: { radius: 0, hitRadius: 0, hoverRadius: 0 },
        },
        plugins: { legend: { display: false }, tooltip: { enabled: false } },
        scales: {
          x: {
            type: "linear",
            min: from,
            max: to,
            grid: { display: false },
            ticks: { maxRotation: 0, autoSkip: false, font: axisFont, callback: (value) => this.tick(value) },
            afterBuildTicks: (axis) => (axis.ticks = this.times(axis.width || 400)),
          },
          y: {
            type: "linear",
            beginAtZero: true,
            suggestedMax: this.top ?? undefined,
            border: { display: false },
            afterFit: (axis) => (axis.width = AXIS),
            ticks: { maxTicksLimit: 5, font: axisFont, callback: (value) => round(this.format(value)) },
          },
        },
      },
      plugins: [{ id: "under", beforeDatasetsDraw: (chart) => this.drawUnder(chart) }],
    });
    this.recolour();
  }

  recolour() {
    const { chart } = this;
    if (!chart) return;
    this.pickColours();
    const [muted, line] = [style("--muted"), style("--line")];
    chart.data.datasets.forEach((dataset, index) => {
      const colour = style(this.lines[index].colour);
      dataset.borderColor = colour;
      dataset.backgroundColor = `${colour}22`;
    });
    chart.options.scales.x.ticks.color = chart.options.scales.y.ticks.color = muted;
    chart.options.scales.x.border = { color: line };
    chart.options.scales.y.grid = { color: line, lineWidth: 0.7 };
    chart.update("none");
  }

  pickColours() {
    this.markerColours = Object.fromEntries(Object.entries(MARKERS).map(([kind, name]) => [kind, style(name)]));
    this.bandColour = `${style("--good")}1a`;
  }

  times(width) {
    const { from, to } = this.group;
    const most = Math.max(2, Math.floor(width / 76));
    const step = STEPS.find((one) => (to - from) / one <= most) ?? STEPS[STEPS.length - 1];
    this.fine = step < 60;
    // Round in local time, which may be half an hour off UTC.
    const shift = new Date(to * 1000).getTimezoneOffset() * 60;
    const ticks = [];
    for (let at = Math.ceil((from - shift) / step) * step + shift; at <= to; at += step) ticks.push({ value: at });
    return ticks;
  }

  tick(value) {
    return this.fine ? clock(value) : shortClock(value);
  }

  drawUnder({ ctx, chartArea: area, scales: { x, y } }) {
    if (this.band) {
      const [low, high] = this.band.map((value) => y.getPixelForValue(value));
      ctx.fillStyle = this.bandColour;
      ctx.fillRect(area.left, high, area.right - area.left, low - high);
    }
    for (const marker of this.group.markers ?? []) {
      if (marker.at < this.group.from || marker.at > this.group.to) continue;
      const at = Math.round(x.getPixelForValue(marker.at)) + 0.5;
      ctx.strokeStyle = ctx.fillStyle = this.markerColours[marker.kind] ?? this.markerColours.recovery;
      ctx.save();
      ctx.globalAlpha = 0.55;
      ctx.setLineDash([2, 3]);
      ctx.beginPath();
      ctx.moveTo(at, area.top);
      ctx.lineTo(at, area.bottom);
      ctx.stroke();
      ctx.restore();
      ctx.beginPath();
      ctx.moveTo(at - 4, area.top - 6);
      ctx.lineTo(at + 4, area.top - 6);
      ctx.lineTo(at, area.top);
      ctx.fill();
    }
  }

  // --- cursor and zoom ---

  get span() {
    return [AXIS, Math.max(AXIS + 1, this.box.clientWidth - RIGHT)];
  }

  timeAt(pixel) {
    const [left, right] = this.span;
    const share = Math.min(1, Math.max(0, (pixel - left) / (right - left)));
    return this.group.from + share * (this.group.to - this.group.from);
  }

  pixelAt(time) {
    const [left, right] = this.span;
    return left + ((time - this.group.from) / (this.group.to - this.group.from)) * (right - left);
  }

  listen() {
    const { box, group } = this;
    const pixel = (event) => event.clientX - box.getBoundingClientRect().left;
    let start = null;
    box.addEventListener("pointermove", (event) => {
      group.point(this.timeAt(pixel(event)));
      if (start !== null) this.showChosen(start, pixel(event));
    });
    box.addEventListener("pointerleave", () => start === null && group.point(null));
    box.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || event.pointerType === "touch") return;
      start = pixel(event);
      box.setPointerCapture(event.pointerId);
    });
    box.addEventListener("pointerup", (event) => {
      const end = pixel(event);
      this.chosen.hidden = true;
      if (start !== null && Math.abs(end - start) > 8) {
        group.zoomTo(this.timeAt(Math.min(start, end)), this.timeAt(Math.max(start, end)));
      }
      start = null;
    });
    box.addEventListener("dblclick", () => group.zoomTo(null));
    box.addEventListener("keydown", (event) => this.key(event));
    box.addEventListener("blur", () => group.point(null));
  }

  key(event) {
    const { group } = this;
    const width = group.to - group.from;
    const at = group.cursor ?? group.to;
    const step = width / (event.shiftKey ? 10 : 100);
    const moves = { ArrowLeft: at - step, ArrowRight: at + step, Home: group.from, End: group.to };
    if (event.key in moves) group.point(Math.min(group.to, Math.max(group.from, moves[event.key])));
    else if (event.key === "+" || event.key === "=") {
      group.zoomTo(Math.max(group.from, at - width / 4), Math.min(group.to, at + width / 4));
    } else if (event.key === "-" || event.key === "Escape") group.zoomTo(null);
    else return;
    event.preventDefault();
  }

  showChosen(start, end) {
    this.chosen.hidden = false;
    this.chosen.style.transform = `translateX(${Math.min(start, end)}px)`;
    this.chosen.style.width = `${Math.abs(end - start)}px`;
  }

  showCursor() {
    const { cursor } = this.group;
    this.line.hidden = cursor === null;
    if (cursor !== null) this.line.style.transform = `translateX(${this.pixelAt(cursor)}px)`;
    this.readout();
    this.showTip(cursor);
  }

  showTip(cursor) {
    if (cursor === null || !this.box.matches(":hover, :focus")) {
      this.tip.hidden = true;
      return;
    }
    const at = this.pixelAt(cursor);
    const near = (this.group.markers ?? []).filter((marker) => Math.abs(this.pixelAt(marker.at) - at) <= NEAR).slice(
      -4,
    );
    fill(
      this.tip,
      clock(cursor),
      near.map((marker) => h("span", { class: "mark" }, `${clock(marker.at)} ${marker.label}`)),
    );
    this.tip.hidden = false;
    const room = this.box.clientWidth - this.tip.offsetWidth - 2;
    this.tip.style.transform = `translateX(${
      at + 10 > room ? Math.max(0, at - this.tip.offsetWidth - 10) : at + 10
    }px)`;
  }

  /** Values under the cursor, else the newest: in the legend for eyes, as the slider's value for ears. */
  readout() {
    const { series, group } = this;
    if (!series) return;
    const texts = this.lines.map((line, index) => {
      const value = group.cursor === null ? series.latest(line.column) : series.value(line.column, group.cursor);
      const text = value === null ? NONE : this.format(value * (line.scale ?? 1));
      say(this.values[index], text);
      return `${line.label} ${text}`;
    });
    if (document.activeElement !== this.box && this.described) return;
    this.described = true;
    const at = group.cursor ?? group.to;
    for (const [name, value] of [["min", group.from], ["max", group.to], ["now", at]]) {
      this.box.setAttribute(`aria-value${name}`, value.toFixed(0));
    }
    this.box.setAttribute("aria-valuetext", `${clock(at)}: ${texts.join(", ")}`);
  }

  close() {
    this.closed = true;
    this.watch.disconnect();
    this.chart?.destroy();
  }
}

/** A tick without the decimals that say nothing: `20.0 ms` is `20 ms`. */
const round = (text) => text.replace(/\.0+(?=\D|$)/, "");

function swatch(line) {
  const stroke = svg("line", {
    x1: 0,
    y1: 4,
    x2: 16,
    y2: 4,
    "stroke-width": 2.5,
    "stroke-dasharray": line.dash?.join(" "),
  });
  stroke.style.stroke = `var(${line.colour})`;
  return svg("svg", { viewBox: "0 0 16 8", "aria-hidden": "true" }, stroke);
}
