// One worker: what it runs now, its own charts, how its warm-up went, its sessions and the end of its log.

import { get, poolPath, query } from "../api.js";
import { fill, h, webAddress } from "../dom.js";
import { intervalOf, servedLinks } from "../export_links.js";
import { agoTime, count, duration, megabytes, percent, rate, time } from "../format.js";
import { LogPanel } from "../log_panel.js";
import { badge, bar, facts, panel } from "../parts.js";
import { Plot } from "../plot.js";
import { PlotGroup } from "../plot_group.js";
import { askedOf } from "../pool.js";
import { Series } from "../series.js";
import { cellText, slotCells } from "../small_charts.js";
import { ERROR_RATE, LATENCY, THROUGHPUT, UTILIZATION } from "./charts.js";
import { endedFacts } from "./ended_workers.js";
import { workerActions } from "./worker_actions.js";

const AGAIN_MS = 2000;

export const create = (ctx) => new WorkerView(ctx);

class WorkerView {
  constructor(ctx) {
    this.ctx = ctx;
    this.what = `worker ${ctx.arg}`;
    this.topics = ["workers", "events"];
    this.rerange = true;
    this.series = new Series();
    this.group = new PlotGroup(ctx, async () => {
      await this.loadHistory();
      this.drawCharts();
    });
    const own = () => ({ worker: ctx.arg });
    this.plots = PLOTS.map(({ chart, ...about }) =>
      new Plot(this.group, {
        ...about,
        links: servedLinks(ctx, about.title, chart, () => intervalOf(this.group, ctx.range()), own),
      })
    );
    this.status = h("span", {});
    this.facts = h("div", {});
    this.cells = h("div", {});
    this.warmup = h("div", {});
    this.sessions = h("div", {});
    this.log = new LogPanel(ctx, "End of the log", { worker: ctx.arg });
    this.node = h(
      "div",
      { class: "stack" },
      h("p", {}, h("a", { href: ctx.href("workers") }, "All workers")),
      h(
        "div",
        { class: "head" },
        h("h1", { class: "id" }, ctx.arg),
        this.status,
        this.links = h("div", { class: "push" }),
      ),
      panel("Facts", {}, this.facts),
      h("div", { class: "columns" }, panel("Running now", {}, this.cells), panel("Warm-up by step", {}, this.warmup)),
      h("div", { class: "plots" }, this.plots.map((plot) => plot.node)),
      h(
        "div",
        { class: "columns" },
        panel("Sessions here", {}, this.sessions),
        this.log.node,
      ),
    );
    this.node.querySelector(".head").style.marginBottom = "0";
  }

  async load() {
    // One that ended is remembered for a while, and no worker to ask.
    await this.findEnded();
    if (!this.ended) this.worker = await get(poolPath(this.ctx.pool, "workers", this.ctx.arg));
    await this.loadHistory();
    if (!this.ended) this.poll ??= setInterval(() => this.again(), AGAIN_MS);
    this.log.load();
  }

  async loadHistory() {
    const asked = { ...askedOf(this.ctx.span()), worker: this.ctx.arg };
    const [history] = await Promise.all([
      get(poolPath(this.ctx.pool, "metrics", "table") + query(asked)),
      this.ctx.data.loadMarkers(this.ctx.span()),
    ]);
    this.series.load(history);
  }

  async findEnded() {
    const { ended } = await get(poolPath(this.ctx.pool, "workers") + query({ limit: 1 }));
    this.ended = ended.find((one) => one.id === this.ctx.arg);
  }

  async again() {
    if (document.hidden || this.closed) return;
    try {
      this.worker = await get(poolPath(this.ctx.pool, "workers", this.ctx.arg));
      const recent = { ...askedOf(this.ctx.span()), worker: this.ctx.arg };
      if (!recent.resolution) recent.range = 60;
      this.series.append(await get(poolPath(this.ctx.pool, "metrics", "table") + query(recent)));
    } catch (problem) {
      if (problem.status === 404) this.gone();
      return;
    }
    if (!this.closed) this.draw();
  }

  async gone() {
    clearInterval(this.poll);
    try {
      await this.findEnded();
    } catch {
      // The service is away too; what is shown stays.
    }
    if (!this.closed) this.drawEnded();
  }

  drawEnded() {
    const { ended } = this;
    fill(
      this.status,
      ended && !ended.expected ? badge("failed", "lost") : badge("stopped"),
      h("span", { class: "muted" }, ended ? ` ${ended.cause}` : " this worker has ended; why is no longer known"),
    );
    fill(this.links);
    if (ended) fill(this.facts, endedFacts(this.ctx, ended));
    fill(this.cells, h("p", { class: "muted" }, "It has ended: nothing runs here."));
    fill(this.warmup, h("p", { class: "muted" }, "Not kept beyond a worker's end."));
    fill(this.sessions, h("p", { class: "muted" }, "Its sessions are elsewhere, each from its next operation on."));
    this.drawCharts();
  }

  draw() {
    if (this.ended) return this.drawEnded();
    const { worker } = this;
    const { running_operations: running, memory, warmup, session_ids: sessions } = worker;
    const trouble = worker.trouble ? h("span", { class: "bad" }, ` ${worker.trouble}`) : null;
    const reason = worker.reason ? h("span", { class: "muted" }, ` ${worker.reason}`) : null;
    fill(this.status, badge(worker.state), trouble, reason);
    const ray = webAddress(worker.ray_url);
    if (!this.links.children.length) {
      fill(
        this.links,
        workerActions(this.ctx, worker, false),
        ray ? h("a", { class: "button", href: ray, target: "_blank", rel: "noreferrer" }, "Ray dashboard") : null,
      );
    }
    // One number for squares and words: what it reports and what it answers are of two moments.
    const busy = running ? running.length : worker.running;
    const loaded = Object.entries(worker.programs ?? {}).map(([name, version]) => `${name} v${version}`);
    fill(
      this.facts,
      facts([
        ["Number", `${worker.slot}${worker.overflow ? " (overflow)" : ""}`],
        ["Process", `${worker.pid || "–"} (${worker.start || "not said"})`],
        ["Node", worker.node || "–"],
        ["Started", time(worker.started_at)],
        ["Last health check", agoTime(worker.checked_at)],
        ["Operations", count(worker.operations)],
        ["Errors", h("span", { class: worker.errors ? "bad" : "" }, count(worker.errors))],
        ["Utilization", percent(worker.utilization)],
        ["Throughput", rate(worker.throughput)],
        ["RSS", megabytes(memory?.rss_mb ?? (worker.rss_mb || null))],
        ["PSS", megabytes(memory?.pss_mb)],
        ["USS", megabytes(memory?.uss_mb)],
        ["Programs", loaded.join(", ") || "–"],
      ]),
    );
    fill(
      this.cells,
      h(
        "p",
        { class: "above-list" },
        slotCells(worker.slots, busy, running),
        h("span", { class: "muted" }, ` ${busy} of ${worker.slots} slots busy`),
      ),
      (running ?? []).length
        ? h(
          "ul",
          { class: "steps" },
          running.map((cell) =>
            h(
              "li",
              {},
              h("span", { class: "id" }, cell.program ?? cell.command),
              h("span", { class: "muted" }, cell.session ? `session ${cell.session}` : cell.command),
              h("span", { class: "num", title: cellText(cell) }, duration(cell.held_s)),
            )
          ),
        )
        : h("p", { class: "muted" }, running ? "Nothing runs here at this moment." : "The worker did not answer."),
    );
    this.drawWarmup(warmup ?? []);
    fill(
      this.sessions,
      sessions?.length
        ? h("div", { class: "chips" }, sessions.map((id) => h("span", { class: "chip" }, id)))
        : h("p", { class: "muted" }, "No session is active here."),
    );
    this.drawCharts();
    return undefined;
  }

  drawWarmup(steps) {
    const most = Math.max(1e-9, ...steps.map((step) => step.duration_s));
    fill(
      this.warmup,
      steps.length
        ? h(
          "ul",
          { class: "steps" },
          steps.map((step) => {
            const share = bar(
              step.duration_s / most,
              `${step.step} took ${duration(step.duration_s)}`,
              Boolean(step.error),
            );
            share.classList.add("wide");
            return h(
              "li",
              {},
              h("span", {}, step.step),
              step.error ? h("span", { class: "bad" }, step.error) : share,
              h("span", { class: "num" }, duration(step.duration_s)),
            );
          }),
        )
        : h("p", { class: "muted" }, "The warm-up has no steps, or its timing is no longer kept."),
    );
  }

  moved() {
    this.group.moved();
  }

  drawCharts() {
    const now = Math.max(this.series.last ?? 0, this.ctx.data.now);
    this.group.frame(now, this.ctx.range());
    this.group.draw(this.series, this.ctx.data.markers);
  }

  live(kind, frame) {
    const row = kind === "workers" && frame.changed?.find((one) => one.id === this.ctx.arg);
    if (row) {
      this.worker = { ...this.worker, ...row };
      this.draw();
    }
    if (kind === "workers" && frame.gone?.includes(this.ctx.arg)) this.gone();
  }

  close() {
    this.closed = true;
    clearInterval(this.poll);
    this.group.close();
  }
}

const PLOTS = [UTILIZATION, THROUGHPUT, { ...LATENCY, title: "Run time" }, ERROR_RATE];
