// Sessions: who they belong to, where they live, when they were last used; an admin may end one.

import { get, poolPath, query, send } from "../api.js";
import { actionButton } from "../dialog.js";
import { fill, h, later } from "../dom.js";
import { agoTime, count, plural } from "../format.js";
import { empty, failed } from "../parts.js";
import { Table } from "../table.js";

const PAGE = 100;
const AGAIN_MS = 5000;

export const create = (ctx) => new Sessions(ctx);

class Sessions {
  constructor(ctx) {
    this.ctx = ctx;
    this.what = "the sessions";
    this.search = "";
    this.rows = [];
    this.table = new Table({ label: "Sessions", key: (row) => row.id, columns: this.columns() });
    this.count = h("span", { class: "muted", role: "status" });
    this.more = h("button", { type: "button", hidden: true, on: { click: () => this.next() } }, "Show more");
    this.nothing = h("div", {});
    const look = later(250, (text) => this.find(text));
    const find = h("input", {
      type: "search",
      placeholder: "Find by id, worker or principal",
      "aria-label": "Find sessions",
      on: { input: (event) => look(event.target.value) },
    });
    this.node = h(
      "div",
      { class: "stack" },
      h("div", { class: "head" }, h("h1", {}, "Sessions"), this.count, h("div", { class: "push" }, find)),
      h(
        "section",
        { class: "panel", "aria-label": "Sessions" },
        this.table.node,
        this.nothing,
        this.below = h("div", { class: "foot" }, this.more),
      ),
    );
    this.node.querySelector(".head").style.marginBottom = "0";
    this.table.node.style.marginTop = "-14px";
    this.table.node.style.marginBottom = "0";
  }

  columns() {
    const { ctx } = this;
    return [
      {
        key: "id",
        label: "Session",
        plain: true,
        full: true,
        sign: (row) => row.id,
        cell: (row) => {
          const asked = ctx.admin ? { session: row.id } : { session_hash: row.id };
          return h(
            "a",
            { class: "id", title: "Its operations", href: ctx.href("operations", null, asked) },
            row.id,
          );
        },
      },
      {
        key: "owner",
        label: "Worker",
        sign: (row) => row.owner,
        cell: (
          row,
        ) => (row.owner
          ? h("a", { class: "id", href: ctx.href("workers", row.owner) }, row.owner)
          : h("span", { class: "muted" }, "not active")),
      },
      { key: "principal", label: "Principal", cell: (row) => row.principal ?? "–" },
      {
        key: "programs",
        label: "Programs",
        sign: (row) => row.programs,
        cell: (
          row,
        ) => (row.programs.length
          ? h("span", { class: "chips" }, row.programs.map((name) => h("span", { class: "chip" }, name)))
          : "–"),
      },
      { key: "used", label: "Last use", num: true, cell: (row) => agoTime(row.last_used_at) },
      { key: "created", label: "Created", num: true, cell: (row) => agoTime(row.created_at) },
      {
        key: "moves",
        label: "Moves",
        num: true,
        title: "How often it was rebuilt on another worker",
        cell: (row) => count(row.moves),
      },
      {
        key: "actions",
        label: "Actions",
        full: true,
        sign: (row) => row.id,
        cell: (row) =>
          actionButton(ctx, {
            label: "End",
            title: `End session ${row.id}`,
            ask: () => ({
              title: "End this session?",
              text: `${row.id}: its programs, variables and history are deleted. This cannot be undone.`,
              verb: "End session",
              danger: true,
            }),
            run: async () => {
              await send("DELETE", poolPath(ctx.pool, "pool_sessions", row.id));
              return `Session ${row.id} has ended.`;
            },
            done: () => this.again(),
          }),
      },
    ];
  }

  ask(cursor = null) {
    const limit = cursor ? PAGE : Math.min(1000, Math.max(PAGE, this.rows.length));
    return get(poolPath(this.ctx.pool, "pool_sessions") + query({ search: this.search, limit, cursor }));
  }

  async load() {
    this.take(await this.ask());
    this.poll ??= setInterval(() => document.hidden || this.again(), AGAIN_MS);
  }

  take(page, before = []) {
    this.rows = [...before, ...page.sessions];
    this.cursor = page.next_cursor;
    this.total = page.total;
  }

  async again() {
    const asked = (this.asked = Symbol("ask"));
    try {
      const page = await this.ask();
      if (this.asked !== asked || this.closed) return;
      this.take(page);
      this.draw();
    } catch (problem) {
      if (this.asked === asked && problem.status && !problem.temporary) {
        fill(
          this.nothing,
          failed(problem, () => this.again()),
        );
      }
    }
  }

  find(text) {
    this.search = text.trim();
    this.rows = [];
    return this.again();
  }

  async next() {
    const before = this.rows;
    this.take(await this.ask(this.cursor), before);
    this.draw();
  }

  draw() {
    this.table.show(this.rows);
    this.table.node.hidden = !this.rows.length;
    this.more.hidden = this.below.hidden = !this.cursor;
    fill(
      this.nothing,
      this.rows.length
        ? null
        : this.search
        ? empty("No session fits", "Nothing by this id, worker or principal.")
        : empty("No sessions", "A session begins with the first program, variable or model that someone sets in it."),
    );
    const text = this.total === null || this.total === undefined
      ? `${plural(this.rows.length, "session")} shown`
      : plural(this.total, "session");
    if (this.count.textContent !== text) this.count.textContent = text;
  }

  close() {
    this.closed = true;
    clearInterval(this.poll);
  }
}
