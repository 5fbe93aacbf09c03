// The cards of the overview: the value now, what belongs to it, and a sparkline of the range.

import { fill, h, say } from "../dom.js";
import { count, duration, parts, percent } from "../format.js";
import { inTurn } from "../plot_group.js";
import { Gauge, Sparkline } from "../small_charts.js";

const figure = ([number, unit]) => [number, unit ? h("small", {}, unit) : null];

class Card {
  constructor(title, { column, top = 0, wide = false, help = "" }) {
    this.column = column;
    this.top = top;
    this.value = h("div", { class: "figure" });
    this.more = h("div", { class: "more" });
    this.spark = new Sparkline(`${title} over the range`);
    this.body = h("div", {}, this.value);
    this.job = () => this.spark.draw(...this.drawn);
    this.node = h(
      "section",
      { class: `card ${wide ? "wide" : ""}`, "aria-label": title, title: help },
      h("h2", {}, title),
      this.body,
      this.more,
      this.spark.node,
    );
  }

  show(value, more, trouble = false) {
    const sign = JSON.stringify([value, more]);
    if (this.sign !== sign) {
      this.sign = sign;
      fill(this.value, figure(value));
      fill(this.more, more.map(([name, text]) => h("span", {}, `${name} `, h("b", {}, text))));
    }
    this.node.classList.toggle("trouble", trouble);
    this.spark.node.classList.toggle("bad", trouble);
  }

  /** In its turn: all of them at once, of an hour each, would hold the page for longer than a frame may. */
  draw(series, from, to) {
    this.drawn = [series, this.column, from, to, this.top];
    inTurn(this.job);
  }
}

export class Cards {
  constructor() {
    this.gauge = new Gauge("Utilization");
    this.utilization = new Card("Utilization", {
      column: "utilization",
      top: 1,
      help: "Slot-seconds in use of those available, over the last seconds",
    });
    this.gaugeFacts = h("div", { class: "more" });
    fill(this.utilization.body, h("div", { class: "gauged" }, this.gauge.node, this.gaugeFacts));
    this.throughput = new Card("Throughput", { column: "throughput", help: "Served operations a second" });
    this.latency = new Card("Latency", {
      column: "p95_s",
      wide: true,
      help: "From submitting to the end, of served operations",
    });
    this.errors = new Card("Error rate", {
      column: "error_rate",
      top: 0.002,
      help: "Errors and timeouts among served operations, and the share that may fail",
    });
    this.queue = new Card("Queue", { column: "queue_depth", top: 5, help: "Operations that wait for a slot" });
    this.size = new Card("Size", { column: "size", help: "Workers" });
    this.tokens = new Card("Tokens", { column: "output_tokens", help: "Tokens that models read and wrote" });
    this.all = [this.utilization, this.throughput, this.latency, this.errors, this.queue, this.size, this.tokens];
    this.node = h("div", { class: "cards" }, this.all.map((card) => card.node));
  }

  show({ now, pool, totals }) {
    const n = now ?? {};
    const target = pool.target_utilization ?? 0.7;
    const band = [Math.max(0, target - 0.1), Math.min(1, target + 0.1)];
    this.gauge.draw(n.utilization, band);
    const running = [["running", count(n.running)], ["sessions", count(n.sessions)]];
    const sign = JSON.stringify(running);
    if (this.gaugeSign !== sign) {
      fill(
        this.gaugeFacts,
        running.map(([name, text]) => h("span", {}, `${name} `, h("b", {}, text))),
      );
    }
    this.gaugeSign = sign;
    this.throughput.show(parts.rate(n.throughput), [["ended", count(sum(totals?.by_outcome))], [
      "retries",
      count(totals?.retries),
    ]]);
    this.latency.show(parts.duration(n.p95_s), [["p50", duration(n.p50_s)], ["p95", duration(n.p95_s)], [
      "p99",
      duration(n.p99_s),
    ], ["mean", duration(n.mean_s)]]);
    this.errors.show(parts.percent(n.error_rate, 2), [["objective", percent(pool.error_objective, 2)], [
      "failed",
      count((totals?.by_outcome.error ?? 0) + (totals?.by_outcome.timeout ?? 0)),
    ]], n.error_rate > pool.error_objective);
    this.queue.show(parts.count(n.queue_depth), [["wait p95", duration(n.wait_p95_s)], [
      "oldest",
      duration(n.oldest_wait_s),
    ]], n.oldest_wait_s > 10 * (pool.max_wait_s ?? 0.1));
    this.size.show(parts.count(n.active === undefined ? pool.actual : n.size, "workers"), [
      ["desired", count(pool.desired)],
      ["actual", count(pool.actual)],
      ["spare", count(n.spare ?? pool.spares)],
      ["overflow", count(n.overflow)],
    ], pool.actual < pool.desired && pool.state === "degraded");
    const window = n.window_s || 1;
    this.tokens.show(parts.rate(now ? (n.input_tokens + n.output_tokens) / window : null, "tokens/s"), [
      [
        "read",
        count(totals?.input_tokens),
      ],
      ["written", count(totals?.output_tokens)],
      ...cost(totals?.cost_usd),
    ]);
    say(this.latency.node.querySelector("h2"), "Latency (p95)");
  }

  draw(series, from, to) {
    for (const card of this.all) card.draw(series, from, to);
  }
}

const sum = (values) => Object.values(values ?? {}).reduce((total, value) => total + value, 0);

/** The row of a card that says what tokens cost, where the pool has prices. */
function cost(usd) {
  return usd ? [["cost", `$${usd < 1 ? usd.toPrecision(2) : usd.toFixed(2)}`]] : [];
}
