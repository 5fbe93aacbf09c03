// What is wrong with the pool, in one sentence that leads to it; the rest below it. The service judges, this only says.

import { fill, h } from "./dom.js";
import { ago, clock } from "./format.js";

const VIEW = { errors: "errors", workers: "workers", alerts: "events", operations: "operations", sizing: "sizing" };
const TONE = { critical: "trouble", warning: "", info: "quiet" };
const LINKS = {
  errors: "See the error",
  workers: "See the worker",
  alerts: "See the alert",
  operations: "See operations",
  sizing: "See sizing",
};

export class Truth {
  constructor(ctx) {
    this.ctx = ctx;
    this.node = h("div", { class: "truth", role: "status", "aria-label": "What is wrong" });
  }

  show(diagnosis) {
    const sign = JSON.stringify(diagnosis?.faults) + Math.floor(Date.now() / 10_000);
    if (this.sign === sign) return;
    this.sign = sign;
    const faults = diagnosis?.faults ?? [];
    this.node.hidden = !faults.length;
    const [worst, ...others] = faults;
    fill(
      this.node,
      worst && this.line(worst, `bannered ${TONE[worst.severity]}`),
      others.length ? h("ul", {}, others.map((fault) => h("li", {}, this.line(fault, "small")))) : null,
    );
  }

  line(fault, look) {
    const view = VIEW[fault.place];
    const link = view && h(
      "a",
      { href: this.ctx.href(view, view === "events" ? null : fault.id || null) },
      fault.id
        ? LINKS[fault.place]
        : LINKS[fault.place].replace("the error", "errors").replace("the worker", "workers"),
    );
    const more = [
      fault.since ? `since ${clock(fault.since)} (${ago(fault.since)})` : "",
      fault.whom ? `noticed by ${fault.whom}` : "",
    ].filter(Boolean).join(", ");
    return h(
      "p",
      { class: look },
      h("span", {}, `${fault.sentence}.`),
      more ? h("span", { class: "small" }, more) : null,
      link,
    );
  }
}
