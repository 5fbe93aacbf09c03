// Workers that ended lately: why, and what took over.

import { h } from "../dom.js";
import { age, count, duration, NONE, time } from "../format.js";
import { badge, facts, panel } from "../parts.js";
import { Table } from "../table.js";

const HOW = { spare: "the spare", fork: "a forked worker", exec: "a new process" };

/** "the spare demo-w3-ab12 after 77 ms", with a link to it. */
function successor(ctx, ended) {
  if (!ended.replaced_by) return ended.expected ? NONE : "nothing yet";
  const after = ended.took_s ? ` after ${duration(ended.took_s)}` : " at once";
  return h(
    "span",
    {},
    `${HOW[ended.how] ?? "worker"} `,
    h("a", { class: "id", href: ctx.href("workers", ended.replaced_by) }, ended.replaced_by),
    after,
  );
}

const verdict = (ended) => badge(ended.expected ? "stopped" : "failed", ended.expected ? "told to go" : "lost");

export class EndedTable {
  constructor(ctx) {
    this.table = new Table({
      label: "Workers that ended",
      key: (row) => row.id,
      sort: { key: "at", down: true },
      page: 10,
      columns: [
        {
          key: "id",
          label: "Worker",
          plain: true,
          full: true,
          sign: (row) => row.id,
          cell: (row) => h("a", { class: "id", href: ctx.href("workers", row.id) }, row.id),
        },
        {
          key: "at",
          label: "Ended",
          sort: (row) => row.ended_at,
          sign: (row) => row.ended_at,
          cell: (row) => time(row.ended_at),
        },
        { key: "how", label: "", sign: (row) => row.expected, cell: verdict },
        { key: "cause", label: "Cause", full: true, cell: (row) => row.cause || "not known" },
        {
          key: "after",
          label: "Took over",
          full: true,
          sign: (row) => [row.replaced_by, row.how, row.took_s],
          cell: (row) => successor(ctx, row),
        },
        { key: "age", label: "Lived", num: true, cell: (row) => age(row.started_at, row.ended_at) },
        { key: "operations", label: "Operations", num: true, cell: (row) => count(row.operations) },
      ],
    });
    this.table.node.classList.add("dense");
    this.node = panel("Ended lately", {}, this.table.node);
    this.node.hidden = true;
  }

  show(rows) {
    this.node.hidden = !rows.length;
    this.table.show(rows);
  }
}

/** All that is known of one that ended. */
export function endedFacts(ctx, ended) {
  return h(
    "div",
    {},
    facts([
      ["Cause", ended.cause || "not known"],
      ["Ended", time(ended.ended_at)],
      ["Started", time(ended.started_at)],
      ["Took over", successor(ctx, ended)],
      ["Operations", count(ended.operations)],
      ["Errors", count(ended.errors)],
      ["RSS", ended.rss_mb ? `${count(Math.round(ended.rss_mb))} MB` : NONE],
    ]),
  );
}
