// What runs in the slots now, the longest first; an admin may cancel it.

import { get, poolPath, query, send } from "./api.js";
import { actionButton } from "./dialog.js";
import { h } from "./dom.js";
import { duration, NONE } from "./format.js";
import { panel } from "./parts.js";
import { Table } from "./table.js";

const AT_ONCE = 64;
const SHOWN = 5;

export class RunningPanel {
  constructor(ctx) {
    this.ctx = ctx;
    this.table = new Table({ label: "Running now", key: (row) => row.operation, columns: this.columns(), short: true });
    this.node = panel("Running now", { hidden: true }, this.table.node);
  }

  columns() {
    const { ctx } = this;
    const columns = [
      {
        key: "id",
        label: "Operation",
        sign: (row) => row.operation,
        cell: (row) => h("span", { class: "id" }, row.operation),
      },
      { key: "held", label: "Runs for", num: true, cell: (row) => duration(row.held_s) },
      { key: "program", label: "Program", cell: (row) => row.program ?? row.command.replaceAll("_", " ") },
      {
        key: "worker",
        label: "Worker",
        rare: true,
        sign: (row) => row.worker,
        cell: (row) => h("a", { class: "id", href: ctx.href("workers", row.worker) }, row.worker),
      },
      { key: "session", label: "Session", rare: true, cell: (row) => row.session ?? NONE },
    ];
    if (ctx.admin) {
      columns.push({
        key: "cancel",
        label: "Actions",
        sign: (row) => row.operation,
        cell: (row) =>
          actionButton(ctx, {
            label: "Cancel",
            title: `Cancel operation ${row.operation}`,
            ask: () => ({
              title: "Cancel this operation?",
              text: `${row.operation}: its caller is told that it was cancelled. What it has changed elsewhere stays.`,
              verb: "Cancel operation",
              danger: true,
            }),
            run: async () => {
              await send("POST", poolPath(ctx.pool, "operations", row.operation, "cancel"));
              return `Operation ${row.operation} is cancelled.`;
            },
            done: () => this.load(),
          }),
      });
    }
    return columns;
  }

  async load() {
    const { pool } = this.ctx;
    const { workers } = await get(poolPath(pool, "workers"));
    const busy = workers.filter((worker) => worker.running).slice(0, AT_ONCE).map((worker) => worker.id);
    const found = busy.length
      ? (await get(poolPath(pool, "running") + query({ workers: busy.join(",") }))).workers
      : {};
    const rows = Object.entries(found).flatMap(([worker, about]) =>
      (about?.operations ?? []).map((one) => ({ ...one, worker }))
    );
    rows.sort((one, other) => other.held_s - one.held_s);
    this.table.show(rows.slice(0, SHOWN));
    this.node.hidden = !rows.length;
  }
}
