// One operation as a waterfall: which part of it took how long, in which process.

import { get, poolPath, query } from "../api.js";
import { fill, h } from "../dom.js";
import { duration, NONE, plural, time } from "../format.js";
import { LogPanel } from "../log_panel.js";
import { badge, empty, facts, panel } from "../parts.js";
import { lane } from "../small_charts.js";

export const create = (ctx) => new Operation(ctx);

const AGAIN_MS = 2000;
const TIMES = 15;

class Operation {
  constructor(ctx) {
    this.ctx = ctx;
    this.what = "the operation";
    this.node = h("div", { class: "stack" });
    this.log = new LogPanel(ctx, "Log", { operation: ctx.arg });
  }

  /** Its trace, if it is there. */
  async look() {
    const { pool, arg } = this.ctx;
    this.found = await orNone(get(poolPath(pool, "operations", arg)), 404);
  }

  async load() {
    const { pool, arg } = this.ctx;
    await this.look();
    // It may have been asked for by the id of its trace.
    const named = this.found?.spans.find((span) => span.attributes?.["dspool.operation.id"]);
    const id = named?.attributes["dspool.operation.id"] ?? arg;
    this.log.choice = { operation: id };
    this.log.load();
    const kept = await orNone(get(poolPath(pool, "operations") + query({ id: id.slice(0, 200), limit: 1 })), 403);
    this.kept = kept?.operations[0] ?? null;
    // Its spans come from several processes, each after a while, and may not be there yet.
    if (!this.found && !this.closed) this.poll ??= setInterval(() => this.again(), AGAIN_MS);
  }

  async again() {
    if (document.hidden) return;
    this.times = (this.times ?? 0) + 1;
    try {
      await this.look();
    } catch {
      return;
    }
    if (this.found || this.times >= TIMES) clearInterval(this.poll);
    if (this.found && !this.closed) this.draw();
  }

  close() {
    this.closed = true;
    clearInterval(this.poll);
  }

  /** What the pool keeps of it, traced or not; each name leads to all that has it. */
  about(more = []) {
    const { ctx, kept } = this;
    if (!kept) return more;
    const all = (name, value, text = value) => h("a", { href: ctx.href("operations", null, { [name]: value }) }, text);
    const session = kept.session
      ? all("session", kept.session)
      : kept.session_hash && all("session_hash", kept.session_hash, h("span", { class: "id" }, kept.session_hash));
    return [
      ["Ended", time(kept.ended_at)],
      ["Took", duration(kept.duration_s)],
      ["Waited", duration(kept.wait_s)],
      ["Ran", duration(kept.run_s)],
      ["Program", all("program", kept.program ?? kept.command)],
      kept.version ? ["Version", all("version", String(kept.version), `v${kept.version}`)] : null,
      kept.worker ? ["Worker", h("a", { class: "id", href: ctx.href("workers", kept.worker) }, kept.worker)] : null,
      this.tries() ? null : ["Tries", String(kept.attempts)],
      kept.code ? ["Error", all("error", kept.code)] : null,
      kept.exception ? ["Exception", all("error", kept.exception)] : null,
      kept.at ? ["At", h("span", { class: "id" }, kept.at)] : null,
      session ? ["Session", session] : null,
      kept.principal ? ["Caller", all("principal", kept.principal)] : null,
      ...more,
    ];
  }

  /** The worker of each try, of an operation that had several and was traced. */
  tries() {
    const span = this.found?.spans.find((one) => one.attributes?.["dspool.workers"]);
    const ids = span?.attributes["dspool.workers"].split(",");
    return ids && [
      `Tries (${ids.length})`,
      ids.map((id) => h("div", {}, h("a", { class: "id", href: this.ctx.href("workers", id) }, id))),
    ];
  }

  badge() {
    const { outcome, exception, code } = this.kept;
    return badge(outcome, exception ?? code ?? outcome);
  }

  draw() {
    const back = h("p", {}, h("a", { href: this.ctx.href("operations") }, "All operations"));
    if (!this.found) {
      fill(
        this.node,
        back,
        this.kept && h("div", { class: "head" }, h("h1", { class: "id" }, this.kept.id), this.badge()),
        this.kept && panel("Operation", {}, facts(this.about())),
        h(
          "section",
          { class: "panel" },
          empty("No trace of this operation", "It was not traced, or its trace has been rotated away."),
        ),
        this.log.node,
      );
      return;
    }
    const { trace_id: trace, start, duration_s: whole, spans, more: leftOut } = this.found;
    // Above it there may be the request that it came with.
    const about = (spans.find((span) => span.name.startsWith("operation ")) ?? spans[0])?.attributes ?? {};
    const said = (name, show = String) => (about[name] === undefined ? null : show(about[name]));
    const outcome = about["error.type"] ?? about["dspool.outcome"];
    const worker = said("dspool.worker");
    const shown = plural(spans.length + leftOut, "span") + (leftOut ? `; the first ${spans.length} are below` : "");
    const rows = spans.map((span) => {
      const name = h("button", { type: "button", class: "quiet", "aria-expanded": "false" }, span.name);
      const more = h(
        "div",
        { class: "about", hidden: true },
        facts([
          ["Process", span.process || "–"],
          ["Began", `${duration(span.start_s)} in`],
          ...Object.entries(span.attributes ?? {}).map(([key, value]) => [key, String(value)]),
        ]),
      );
      more.style.gridColumn = "1 / -1";
      more.style.padding = "6px 0 12px";
      name.addEventListener("click", () => {
        more.hidden = !more.hidden;
        name.setAttribute("aria-expanded", String(!more.hidden));
      });
      const label = h("span", { class: "name", title: span.name }, name);
      label.style.paddingLeft = `${Math.min(span.depth, 8) * 14}px`;
      return h(
        "li",
        { class: span.ok ? "" : "failed" },
        label,
        lane(
          span.start_s,
          span.duration_s,
          whole || 1,
          `${span.name}: ${duration(span.duration_s)}, began ${duration(span.start_s)} in`,
        ),
        h("span", { class: "num" }, duration(span.duration_s)),
        more,
      );
    });
    fill(
      this.node,
      back,
      h(
        "div",
        { class: "head" },
        h("h1", { class: "id" }, said("dspool.operation.id") ?? this.ctx.arg),
        this.kept ? this.badge() : outcome ? badge(about["dspool.outcome"] ?? "error", outcome) : null,
      ),
      panel(
        "Operation",
        {},
        facts(
          this.kept ? this.about([this.tries(), ["Spans", shown], ["Trace", h("span", { class: "id" }, trace)]]) : [
            ["Began", time(start)],
            ["Took", duration(whole)],
            ["Waited", said("dspool.wait_s", duration) ?? NONE],
            ["Ran", said("dspool.run_s", duration) ?? NONE],
            this.tries() ?? ["Tries", said("dspool.attempts") ?? NONE],
            ["Program", said("dspool.program") ?? NONE],
            ["Worker", worker ? h("a", { class: "id", href: this.ctx.href("workers", worker) }, worker) : NONE],
            ["Spans", shown],
            ["Trace", h("span", { class: "id" }, trace)],
          ],
        ),
      ),
      panel("Where the time went", {}, h("ol", { class: "waterfall" }, rows)),
      this.log.node,
    );
    this.node.querySelector(".head").style.marginBottom = "0";
  }
}

/** Null where the service answers with this status. */
async function orNone(asked, status) {
  try {
    return await asked;
  } catch (problem) {
    if (problem.status !== status) throw problem;
    return null;
  }
}
