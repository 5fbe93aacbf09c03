// What operations fail with: by exception and line, or by the model's error. One of them in full: who, since when.

import { get, poolPath } from "../api.js";
import { fill, h } from "../dom.js";
import { agoTime, count, plural, time } from "../format.js";
import { badge, empty, facts, panel } from "../parts.js";
import { Table } from "../table.js";

const AGAIN_MS = 3000;

export const create = (ctx) => new Errors(ctx);

class Errors {
  constructor(ctx) {
    this.ctx = ctx;
    this.what = "the errors";
    this.body = h("div", { class: "stack" });
    this.told = h("span", { class: "muted" });
    this.table = new Table({
      label: "Errors",
      key: (row) => row.id,
      columns: this.columns(),
      sort: { key: "lately", down: true },
      page: 30,
    });
    this.node = h("div", { class: "stack" }, this.body);
  }

  columns() {
    const { ctx } = this;
    return [
      {
        key: "text",
        label: "Error",
        plain: true,
        full: true,
        sign: (row) => row.id,
        cell: (row) => h("a", { class: "id", href: ctx.href("errors", row.id) }, row.text),
      },
      { key: "program", label: "Program", sort: (row) => row.program, cell: (row) => row.program },
      {
        key: "outcome",
        label: "Outcome",
        sort: (row) => row.outcome,
        sign: (row) => row.code,
        cell: (row) => badge(row.outcome, row.code),
      },
      {
        key: "lately",
        label: "Last minute",
        num: true,
        sort: (row) => row.lately * 1e12 + row.last,
        cell: (row) => count(row.lately),
      },
      { key: "count", label: "In all", num: true, sort: (row) => row.count, cell: (row) => count(row.count) },
      {
        key: "versions",
        label: "Versions",
        cell: (row) => Object.keys(row.versions).map((version) => `v${version}`).join(", ") || "–",
      },
      {
        key: "first",
        label: "First",
        sort: (row) => row.first,
        sign: (row) => row.first,
        cell: (row) => time(row.first),
      },
      {
        key: "last",
        label: "Last",
        sort: (row) => row.last,
        sign: (row) => [row.last, Math.floor(Date.now() / 5000)],
        cell: (row) => agoTime(row.last),
      },
    ];
  }

  async load() {
    this.found = await get(poolPath(this.ctx.pool, "errors"));
    this.poll ??= setInterval(() => this.again(), AGAIN_MS);
  }

  async again() {
    if (document.hidden) return;
    try {
      await this.load();
    } catch {
      return;
    }
    if (!this.closed) this.draw();
  }

  draw() {
    if (this.ctx.arg) return this.drawOne(this.found.errors.find((one) => one.id === this.ctx.arg));
    const { errors, forgotten } = this.found;
    const more = forgotten ? `; ${plural(forgotten, "older kind")} no longer kept` : "";
    this.told.textContent = `${plural(errors.length, "kind")}${more}`;
    if (this.shown !== Boolean(errors.length)) {
      this.shown = Boolean(errors.length);
      fill(
        this.body,
        h("div", { class: "head" }, h("h1", {}, "Errors"), this.told),
        this.shown
          ? panel("By exception and line, or by the model's error", {}, this.table.node)
          : h("section", { class: "panel" }, empty("No errors", "No operation has failed since the metrics began.")),
      );
      this.body.querySelector(".head").style.marginBottom = "0";
    }
    if (this.shown) this.table.show(errors);
    return undefined;
  }

  drawOne(group) {
    const sign = JSON.stringify(group ?? null) + Math.floor(Date.now() / 5000);
    // A click on a link must not find that the link was just drawn anew.
    if (sign === this.sign || this.body.contains(document.activeElement)) return;
    this.sign = sign;
    const back = h("p", {}, h("a", { href: this.ctx.href("errors") }, "All errors"));
    if (!group) {
      fill(this.body, back, h("section", { class: "panel" }, empty("No such error", "It is no longer kept.")));
      return;
    }
    const all = h(
      "a",
      { class: "button", href: this.ctx.href("operations", null, { error: group.exception || group.code }) },
      "All operations that ended so",
    );
    const by = (name, ids, view) =>
      panel(
        name,
        {},
        ids.length
          ? h(
            "div",
            { class: "chips" },
            ids.map(([text, id]) => h("a", { class: "chip", href: this.ctx.href(view, id) }, text)),
          )
          : h("p", { class: "muted" }, "None is known."),
      );
    fill(
      this.body,
      back,
      h("div", { class: "head" }, h("h1", { class: "id" }, group.text), badge(group.outcome, group.code)),
      panel(
        "Error",
        {},
        facts([
          ["Program", group.program],
          group.exception && ["Exception", h("span", { class: "id" }, group.exception)],
          group.at && ["Line", h("span", { class: "id" }, group.at)],
          group.model && ["Model", h("span", { class: "id" }, group.model)],
          group.provider && ["Provider", group.provider],
          group.profile && ["Profile", group.profile],
          group.status && ["Status", String(group.status)],
          ["Last minute", count(group.lately)],
          ["In all", count(group.count)],
          ["Since", time(group.since)],
          ["First", time(group.first)],
          ["Last", agoTime(group.last)],
        ]),
      ),
      h("p", {}, h("a", { class: "button", href: this.ctx.href("deployments") }, "Versions and roll-back"), " ", all),
      h(
        "div",
        { class: "columns" },
        by("Examples", group.operations.map((id) => [id, id]), "operations"),
        by(
          "Workers",
          Object.entries(group.workers).map(([id, number]) => [`${id}: ${count(number)}`, id]),
          "workers",
        ),
        by(
          "Versions",
          Object.entries(group.versions).map(([version, number]) => [`v${version}: ${count(number)}`, null]),
          "deployments",
        ),
      ),
    );
    this.body.querySelector(".head").style.marginBottom = "0";
  }

  close() {
    this.closed = true;
    clearInterval(this.poll);
  }
}
