// Deployments and roll-backs: how far one is, what its canary and the others did at the same time, and the last ones.

import { h } from "../dom.js";
import { count, duration, percent, time } from "../format.js";
import { badge, bar, facts } from "../parts.js";

const failed = (one) => ["failed", "rolled back"].includes(one.phase);

/** One of them in full; `more` goes below. */
export function rolloutParts(ctx, one, ...more) {
  const parts = [
    facts([
      ["Program", h("span", { class: "id" }, one.program)],
      ["Version", one.previous ? `v${one.previous} → v${one.version}` : `v${one.version}`],
      ["Phase", badge(one.phase)],
      ["Asked for", one.kind === "rollback" ? "a roll-back" : "a new version"],
      one.by ? ["By", one.by] : null,
      ["Began", time(one.began_at)],
      ["Ended", one.ended_at ? time(one.ended_at) : "still going on"],
      ["Canary", one.canary ? h("a", { class: "id", href: ctx.href("workers", one.canary) }, one.canary) : "–"],
    ]),
    one.reason ? h("p", { class: failed(one) ? "bad" : "muted" }, one.reason) : null,
    progress(one),
    one.old || one.new ? comparison(one) : null,
    ...more,
  ];
  return parts.filter(Boolean).map((part) => {
    part.style.marginBottom = "10px";
    return part;
  });
}

function progress(one) {
  if (failed(one)) {
    const stays = one.previous ? `version ${one.previous} serves on all workers` : "no worker has it";
    return h(
      "p",
      { class: "muted small" },
      one.canary ? `Only the canary had it; ${stays}.` : `It changed nothing: ${stays}.`,
    );
  }
  if (!one.workers_total) return null;
  const text = `${one.workers_done} of ${one.workers_total} workers have it`;
  const line = bar(one.workers_done / one.workers_total, text);
  line.classList.add("wide");
  return h("div", { class: "progress" }, h("span", { class: "muted small" }, text), line);
}

/** Both sides over the same time. What the verdict took instead, where that was too little, has a column of its own. */
export function comparison({ old, new: fresh, base, version, previous, watched_s: watched }) {
  const rate = (side) => (side?.operations ? percent(side.errors / side.operations, 2) : "–");
  const rows = [["Operations", (side) => count(side?.operations)], ["Errors", (side) => count(side?.errors)], [
    "Error rate",
    rate,
  ], ["Mean run time", (side) => (side?.operations ? duration(side.run_s) : "–")]];
  const sides = [[`v${version}, canary`, fresh], [previous ? `v${previous}, meanwhile` : "Meanwhile", old]];
  if (base) sides.push([`v${previous}, since it was loaded`, base]);
  return h(
    "div",
    { class: "scroll" },
    h(
      "table",
      {},
      h("caption", { class: "for-readers" }, "The canary against the version before, over the same time"),
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          h("th", { scope: "col" }, watched ? `Over ${duration(watched)}` : "Trial"),
          sides.map(([name]) => h("th", { scope: "col", class: "num" }, name)),
        ),
      ),
      h(
        "tbody",
        {},
        rows.map(([name, of]) =>
          h("tr", {}, h("th", { scope: "row" }, name), sides.map(([, side]) => h("td", { class: "num" }, of(side))))
        ),
      ),
    ),
  );
}

const figures = (side) =>
  side?.operations
    ? `${count(side.operations)}, ${percent(side.errors / side.operations, 1)} failed, ${duration(side.run_s)}`
    : "–";

/** The columns of the table of the last ones. */
export const HISTORY = [
  { key: "at", label: "When", sign: (row) => row.began_at, cell: (row) => time(row.began_at) },
  { key: "program", label: "Program", plain: true, cell: (row) => row.program },
  {
    key: "version",
    label: "Version",
    cell: (row) => (row.previous ? `v${row.previous} → v${row.version}` : `v${row.version}`),
  },
  {
    key: "phase",
    label: "End",
    sign: (row) => [row.phase, row.kind],
    cell: (row) =>
      h(
        "span",
        {},
        badge(row.phase),
        row.kind === "rollback" ? h("span", { class: "small muted" }, " roll-back") : null,
      ),
  },
  { key: "by", label: "Who", cell: (row) => row.by || "–" },
  { key: "new", label: "Canary saw", cell: (row) => figures(row.new) },
  { key: "old", label: "Before, meanwhile", cell: (row) => figures(row.old) },
  { key: "reason", label: "Why", full: true, cell: (row) => row.reason ?? "" },
];
