// What operations are searched for: fields above the list, kept in the address, so that a link shows the same.

import { h, later } from "./dom.js";

const OUTCOMES = [
  ["", "Any outcome"],
  ["failed", "Failed"],
  ["ok", "ok"],
  ["error", "error"],
  ["timeout", "timeout"],
  ["client_error", "client_error"],
  ["rejected", "rejected"],
  ["cancelled", "cancelled"],
];
const TIMES = [
  ["", "Any time"],
  ["900", "Last 15 min"],
  ["3600", "Last hour"],
  ["86400", "Last 24 h"],
  ["604800", "Last 7 days"],
  ["chosen", "From, to …"],
];
const NAMES = [
  "program",
  "version",
  "outcome",
  "error",
  "session",
  "session_hash",
  "principal",
  "worker",
  "range",
  "from",
  "to",
  "at_least_s",
  "at_most_s",
  "text",
  "sort",
  "ascending",
]; // deno-fmt-ignore
const WAIT_MS = 300;

export class OperationFilter {
  /** `changed()` is called when a field says something else than before; the address says it too by then. */
  constructor(ctx, changed) {
    this.ctx = ctx;
    this.changed = changed;
    this.fields = new Map();
    const { admin } = ctx;
    const programs = ctx.data.overview?.programs ?? [];
    const list = h("datalist", { id: "programs" }, programs.map((row) => h("option", { value: row.name })));
    const more = h(
      "details",
      { class: "more" },
      h("summary", {}, "More filters"),
      h(
        "div",
        { class: "filters" },
        this.field("error", "Error code or exception"),
        this.field("worker", "Worker"),
        this.field("session", "Session"),
        admin ? this.field("principal", "Caller") : null,
        this.field("version", "Version", { inputmode: "numeric", size: 5 }),
        this.field("at_least_s", "At least (s)", { inputmode: "decimal", size: 7 }),
        this.field("at_most_s", "At most (s)", { inputmode: "decimal", size: 7 }),
      ),
    );
    this.more = more;
    this.chosen = h("span", { class: "filters", hidden: true }, this.moment("from", "From"), this.moment("to", "To"));
    this.clear = h("a", { class: "button quiet", hidden: true, href: ctx.href("operations") }, "Clear");
    this.node = h(
      "section",
      { class: "panel", "aria-label": "Filters" },
      h(
        "div",
        { class: "filters" },
        this.field("text", "Part of an id", { type: "search" }),
        this.field("program", "Program", { list: "programs" }),
        this.choice("outcome", "Outcome", OUTCOMES),
        this.choice("range", "Time", TIMES),
        this.chosen,
        this.clear,
      ),
      more,
      list,
    );
    this.read();
  }

  field(name, label, props = {}) {
    const change = later(WAIT_MS, (value) => this.set({ [name]: value }));
    const input = h("input", {
      type: "text",
      placeholder: label,
      "aria-label": label,
      maxlength: 200,
      ...props,
      on: { input: (event) => change(event.target.value.trim()) },
    });
    this.fields.set(name, input);
    return input;
  }

  choice(name, label, options) {
    const select = h(
      "select",
      { "aria-label": label, on: { change: (event) => this.pick(name, event.target.value) } },
      options.map(([value, text]) => h("option", { value }, text)),
    );
    this.fields.set(name, select);
    return select;
  }

  moment(name, label) {
    const change = (event) => {
      const at = new Date(event.target.value).getTime() / 1000;
      this.set({ range: null, [name]: Number.isFinite(at) ? String(at) : null });
    };
    const input = h("input", { type: "datetime-local", step: "1", "aria-label": label, on: { change } });
    this.fields.set(name, input);
    return h("label", { class: "small muted" }, `${label} `, input);
  }

  pick(name, value) {
    if (name === "range" && value === "chosen") {
      const now = Date.now() / 1000;
      this.set({ range: null, from: String(Math.floor(now - 3600)), to: null });
    } else if (name === "range") this.set({ range: value, from: null, to: null });
    else this.set({ [name]: value });
  }

  /** Takes what the address says. */
  read() {
    this.asked = {};
    for (const name of NAMES) {
      const value = this.ctx.query().get(name);
      if (value) this.asked[name] = value;
    }
    for (const [name, input] of this.fields) {
      if (name === "from" || name === "to") input.value = this.asked[name] ? local(Number(this.asked[name])) : "";
      else if (document.activeElement !== input || input.tagName === "SELECT") input.value = this.asked[name] ?? "";
    }
    const isChosen = Boolean(this.asked.from || this.asked.to);
    if (isChosen) this.fields.get("range").value = "chosen";
    this.chosen.hidden = !isChosen;
    const rare = ["error", "worker", "session", "session_hash", "principal", "version", "at_least_s", "at_most_s"];
    if (rare.some((name) => this.asked[name])) this.more.open = true;
    this.fields.get("session").placeholder = this.asked.session_hash
      ? `Session ${this.asked.session_hash.slice(0, 12)}`
      : "Session";
    this.draw();
  }

  set(change) {
    const asked = { ...this.asked, ...change };
    if (change.session) asked.session_hash = null;
    for (const [name, value] of Object.entries(asked)) if (!value) delete asked[name];
    if (JSON.stringify(asked) === JSON.stringify(this.asked)) return;
    this.ctx.setQuery(asked);
    this.read();
    this.changed();
  }

  draw() {
    this.clear.hidden = !Object.keys(this.asked).length;
  }
}

/** As a field of date and time has it: the local time. */
function local(at) {
  const moment = new Date(at * 1000);
  return new Date(moment.getTime() - moment.getTimezoneOffset() * 60_000).toISOString().slice(0, 19);
}
