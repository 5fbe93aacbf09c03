// What happened: alerts as they stand, the pool's events as they come, and who changed what.

import { auditRecords, get, poolPath, query, send } from "../api.js";
import { actionButton } from "../dialog.js";
import { fill, h } from "../dom.js";
import { clock, count, time } from "../format.js";
import { badge, empty, failed, panel, segments } from "../parts.js";
import { Table } from "../table.js";

const KEPT = 500;
const SHOWN = 30;
const AUDIT_MS = 10_000;
const SILENCES = [["3600", "1 hour"], ["14400", "4 hours"], ["86400", "1 day"], ["604800", "7 days"]];
const ORDER = { firing: 0, pending: 1, unknown: 2, ok: 3 };

export const create = (ctx) => new Events(ctx);

class Events {
  constructor(ctx) {
    this.ctx = ctx;
    this.what = "the events";
    this.topics = ["events", "alerts"];
    this.level = "all";
    this.search = "";
    this.shown = SHOWN;
    this.rows = [];
    this.alertTable = new Table({ label: "Alerts", key: (row) => row.name, columns: [...ALERTS, this.silences()] });
    this.alertNote = h("p", { class: "muted small" });
    this.feed = h("ol", { class: "feed" });
    this.feedNote = h("div", {});
    this.more = h("button", { type: "button", hidden: true, on: { click: () => this.longer() } }, "Show more");
    this.auditBody = h("div", {});
    this.audit = new Table({
      label: "Audit",
      key: (row) => `${row.at} ${row.event} ${row.method} ${row.path} ${row.principal}`,
      columns: AUDIT,
      page: 25,
    });
    const find = h("input", {
      type: "search",
      placeholder: "Find in events",
      "aria-label": "Find in events",
      on: { input: (event) => this.look(event.target.value) },
    });
    const levels = segments(
      "Level",
      "level",
      [["all", "All"], ["warning", "Warnings"], ["error", "Errors"]],
      "all",
      (value) => this.pick(value),
    );
    this.node = h(
      "div",
      { class: "stack" },
      h("div", { class: "head" }, h("h1", {}, "Events, alerts and audit")),
      panel("Alerts", {}, this.alertTable.node, this.alertNote),
      panel("Events", { actions: [find, levels] }, this.feed, this.feedNote, this.more),
      panel("Audit", {}, this.auditBody),
    );
    this.node.querySelector(".head").style.marginBottom = "0";
    this.alertNote.style.paddingTop = "22px";
  }

  async load() {
    const [events, alerts] = await Promise.all([
      get(poolPath(this.ctx.pool, "events") + query({ limit: KEPT })),
      get(poolPath(this.ctx.pool, "alerts")),
    ]);
    this.rows = [...events.events, ...alerts.changes].sort((one, other) => one.at - other.at);
    this.alerts = alerts;
    await this.loadAudit();
    this.poll ??= setInterval(() => document.hidden || this.loadAudit(), AUDIT_MS);
  }

  async loadAudit() {
    if (!this.ctx.admin) {
      return fill(
        this.auditBody,
        h("p", { class: "muted" }, `The audit trail needs the role admin; you are ${this.ctx.me.role}.`),
      );
    }
    try {
      const records = await auditRecords(200);
      if (this.closed) return undefined;
      if (!records.length) {
        return fill(
          this.auditBody,
          empty("Nothing audited yet", "Each change by an admin is recorded here, with who asked for it."),
        );
      }
      if (this.audit.node.parentNode !== this.auditBody) fill(this.auditBody, this.audit.node);
      this.audit.show(records);
    } catch (problem) {
      if (!problem.temporary) fill(this.auditBody, failed(problem, () => this.loadAudit()));
    }
    return undefined;
  }

  /** Who silenced an alert, why and until when; or the way to do so. */
  silences() {
    const { ctx } = this;
    const path = (row) => poolPath(ctx.pool, "alerts", row.name, "silence");
    const done = () => ctx.refresh();
    const end = (row) =>
      actionButton(ctx, {
        label: "End silence",
        title: `Let ${row.name} alarm again`,
        ask: () => ({ title: "End this silence?", text: `${row.name} counts again at once.`, verb: "End it" }),
        run: async () => {
          await send("DELETE", path(row));
          return `${row.name} counts again.`;
        },
        done,
      });
    const begin = (row) =>
      actionButton(ctx, {
        label: "Silence",
        title: `Silence ${row.name} for a time`,
        ask: () => ({
          title: "Silence this alert?",
          text:
            `${row.name} still fires and stays in this table, but it takes nothing from the pool's health and is not ` +
            "counted until the end of the silence. Everybody sees the reason.",
          verb: "Silence",
          fields: [
            { name: "reason", label: "Reason", input: h("input", { type: "text", required: true, maxlength: 300 }) },
            {
              name: "duration_s",
              label: "For",
              input: h("select", {}, SILENCES.map(([value, text]) => h("option", { value }, text))),
            },
          ],
        }),
        run: async ({ reason, duration_s: seconds }) => {
          await send("POST", path(row), { reason, duration_s: Number(seconds) });
          return `${row.name} is silenced.`;
        },
        done,
      });
    return {
      key: "silence",
      label: "Silence",
      full: true,
      sign: (row) => [row.silence, row.state],
      cell: (row) =>
        row.silence
          ? h(
            "span",
            {},
            badge("paused", "silenced"),
            " until ",
            time(row.silence.until),
            row.silence.by ? ` by ${row.silence.by}` : "",
            h("span", { class: "muted small" }, `: ${row.silence.reason} `),
            end(row),
          )
          : begin(row),
    };
  }

  look(text) {
    this.search = text.trim().toLowerCase();
    this.draw();
  }

  pick(level) {
    this.level = level;
    this.draw();
  }

  longer() {
    this.shown += 100;
    this.draw();
  }

  fits(row) {
    if (this.level === "warning" && !["warning", "error"].includes(row.level)) return false;
    if (this.level === "error" && row.level !== "error") return false;
    return !this.search || `${row.event} ${row.text} ${row.source}`.toLowerCase().includes(this.search);
  }

  draw() {
    const { alerts, evaluated_at: at, every_s: every } = this.alerts;
    this.alertTable.show([...alerts].sort((a, b) => (ORDER[a.state] ?? 9) - (ORDER[b.state] ?? 9)));
    fill(this.alertNote, at ? `Evaluated at ${clock(at)}, every ${count(every)} s.` : "Not evaluated yet.");
    const fitting = this.rows.filter((row) => this.fits(row));
    const rows = fitting.slice(-this.shown).reverse();
    this.more.hidden = fitting.length <= rows.length;
    const sign = rows.map((row) => row.number).join();
    if (sign === this.sign && this.feed.children.length) return;
    this.sign = sign;
    const known = new Map([...this.feed.children].map((line) => [line.dataset.number, line]));
    fill(this.feed, rows.map((row) => known.get(String(row.number)) ?? line(row)));
    fill(
      this.feedNote,
      rows.length
        ? null
        : this.rows.length
        ? empty("No event fits", "Show all levels, or look for something else.")
        : empty(
          "Nothing has happened yet",
          "Resizes, deaths, deployments and moved sessions appear here as they happen.",
        ),
    );
  }

  live(kind, frame) {
    if (kind === "event") {
      // Alerts are numbered by the process that watches over them: -1, -2, ...
      if (this.rows.some((row) => (frame.number > 0 ? row.number >= frame.number : row.number === frame.number))) {
        return;
      }
      this.rows.push(frame);
      if (this.rows.length > KEPT) this.rows.shift();
    } else if (kind === "alerts") {
      // What all viewers hear does not say who silenced an alert.
      const who = new Map(this.alerts.alerts.map((one) => [one.name, one.silence]));
      const alerts = frame.alerts.map((one) => {
        const known = who.get(one.name);
        return one.silence && known?.since === one.silence.since ? { ...one, silence: known } : one;
      });
      this.alerts = { ...this.alerts, alerts, evaluated_at: frame.evaluated_at ?? Date.now() / 1000 };
    } else return;
    this.draw();
  }

  close() {
    this.closed = true;
    clearInterval(this.poll);
  }
}

const line = (row) =>
  h(
    "li",
    { "data-number": row.number },
    time(row.at),
    h("span", {}, badge(row.level)),
    h("span", { class: "what" }, row.text, h("span", { class: "small muted" }, row.event)),
    h("span", { class: "source muted small id" }, row.source),
  );

const valueText = (value) => (typeof value === "number" ? String(Math.round(value * 10_000) / 10_000) : "–");

const ALERTS = [
  { key: "state", label: "State", sign: (row) => row.state, cell: (row) => badge(row.state) },
  { key: "severity", label: "Severity", cell: (row) => row.severity },
  {
    key: "name",
    label: "Alert",
    full: true,
    sign: (row) => [row.name, row.summary, row.description, row.state],
    cell: (row) =>
      h(
        "span",
        { title: row.description || null },
        h("b", {}, row.name),
        h(
          "span",
          { class: "muted small" },
          ` ${row.state === "firing" || row.state === "pending" ? row.summary : row.description || row.summary}`,
        ),
      ),
  },
  { key: "value", label: "Value", num: true, cell: (row) => valueText(row.value) },
  {
    key: "when",
    label: "Fires",
    full: true,
    sign: (row) => [row.when, row.lasting_s],
    cell: (row) =>
      h(
        "span",
        { class: "small muted when" },
        h("code", {}, row.when),
        row.lasting_s ? ` for ${count(row.lasting_s)} s` : "",
      ),
  },
  { key: "since", label: "Since", sign: (row) => row.since, cell: (row) => time(row.since) },
];

const AUDIT = [
  { key: "at", label: "When", sign: (row) => row.at, cell: (row) => time(Date.parse(row.at) / 1000) },
  {
    key: "event",
    label: "What",
    sign: (row) => row.event,
    cell: (row) => badge(row.event, row.event.replace("_", " ")),
  },
  { key: "principal", label: "Who", cell: (row) => `${row.principal ?? "–"}${row.role ? ` (${row.role})` : ""}` },
  {
    key: "path",
    label: "Asked for",
    full: true,
    sign: (row) => [row.method, row.path],
    cell: (row) => h("span", { class: "id" }, `${row.method ?? ""} ${row.path ?? ""}`),
  },
  { key: "status", label: "Answer", num: true, cell: (row) => (row.status ? String(row.status) : "–") },
  { key: "problem", label: "Problem", full: true, cell: (row) => row.reason ?? row.problem ?? "" },
];
