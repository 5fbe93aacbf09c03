// A table whose rows are known by a key: what did not change is not touched, so focus and selection stay.

import { fill, h, set } from "./dom.js";

/**
 * `columns`: {key, label, cell(row) -> text | node, sign?(row) -> what a node depends on, sort?(row), num?, title?,
 * full?, rare?}. A `short` table has two lines a row on a phone, without the `rare` columns. With `onsort` rows come in
 * order already, and it is called with the order that is wanted.
 */
export class Table {
  constructor({ label, columns, key, sort = null, page = 0, stacks = true, short = false, onsort = null }) {
    this.columns = columns;
    this.key = key;
    this.order = sort;
    this.size = page;
    this.onsort = onsort;
    this.first = 0;
    this.rows = [];
    this.lines = new Map();
    this.heads = new Map();
    const headRow = h("tr", {}, columns.map((column) => this.headOf(column)));
    this.body = h("tbody", {});
    this.table = h(
      "table",
      { class: [stacks && "stacks", short && "short"].filter(Boolean).join(" ") },
      h("caption", { class: "for-readers" }, label),
      h("thead", {}, headRow),
      this.body,
    );
    this.foot = h("div", { class: "foot", hidden: true });
    this.node = h("div", { class: "scroll" }, this.table, this.foot);
    this.onpage = null;
    this.showOrder();
  }

  headOf(column) {
    const cell = h("th", { scope: "col", class: column.num ? "num" : "", title: column.title });
    if (column.sort) {
      cell.append(h("button", { type: "button", on: { click: () => this.sortBy(column.key) } }, column.label));
      this.heads.set(column.key, cell);
    } else cell.append(column.label);
    return cell;
  }

  sortBy(key) {
    const down = this.order?.key === key ? !this.order.down : true;
    this.order = { key, down };
    this.first = 0;
    this.showOrder();
    if (this.onsort) this.onsort(this.order);
    else this.show(this.rows);
  }

  showOrder() {
    for (const [key, cell] of this.heads) {
      if (this.order?.key === key) cell.setAttribute("aria-sort", this.order.down ? "descending" : "ascending");
      else cell.removeAttribute("aria-sort");
    }
  }

  /** The rows of the page that is shown, in order. */
  get seen() {
    let rows = this.rows;
    const column = !this.onsort && this.order && this.columns.find((one) => one.key === this.order.key);
    if (column) {
      const sign = this.order.down ? -1 : 1;
      rows = rows.map((row) => [column.sort(row) ?? -Infinity, row]).sort((
        [a],
        [b],
      ) => (a < b ? -sign : a > b ? sign : 0)).map(([, row]) => row);
    }
    if (!this.size) return rows;
    this.first = Math.min(this.first, Math.max(0, Math.floor((rows.length - 1) / this.size) * this.size));
    return rows.slice(this.first, this.first + this.size);
  }

  show(rows) {
    this.rows = rows;
    const seen = this.seen;
    const keys = new Set(seen.map(this.key));
    for (const [key, line] of this.lines) {
      if (!keys.has(key)) {
        line.remove();
        this.lines.delete(key);
      }
    }
    seen.forEach((row, place) => {
      const key = this.key(row);
      let line = this.lines.get(key);
      if (!line) {
        line = h(
          "tr",
          {},
          this.columns.map((column) =>
            h("td", {
              class: [column.num && "num", column.full && "full", column.rare && "rare"].filter(Boolean).join(" "),
              "data-label": column.plain ? null : column.label,
            })
          ),
        );
        line.signs = [];
        this.lines.set(key, line);
      }
      this.paint(line, row);
      if (this.body.children[place] !== line) this.body.insertBefore(line, this.body.children[place] ?? null);
    });
    this.pages(rows.length);
  }

  paint(line, row) {
    this.columns.forEach((column, index) => {
      const cell = line.children[index];
      if (column.sign) {
        const sign = JSON.stringify(column.sign(row));
        if (line.signs[index] === sign) return;
        line.signs[index] = sign;
        fill(cell, column.cell(row));
        return;
      }
      const content = column.cell(row);
      if (typeof content !== "string") fill(cell, content);
      else if (cell.textContent !== content) cell.textContent = content;
    });
  }

  pages(total) {
    this.foot.hidden = !this.size || total <= this.size;
    if (this.foot.hidden) return;
    if (!this.foot.children.length) {
      this.range = h("span", { class: "muted", role: "status" });
      this.back = h("button", { type: "button", on: { click: () => this.turn(-1) } }, "Previous");
      this.next = h("button", { type: "button", on: { click: () => this.turn(1) } }, "Next");
      this.foot.append(this.back, this.next, this.range);
    }
    const last = Math.min(total, this.first + this.size);
    const text = `${this.first + 1} to ${last} of ${total}`;
    if (this.range.textContent !== text) this.range.textContent = text;
    set(this.back, "aria-disabled", String(this.first === 0));
    set(this.next, "aria-disabled", String(last >= total));
  }

  turn(way) {
    const to = this.first + way * this.size;
    if (to < 0 || to >= this.rows.length) return;
    this.first = to;
    this.show(this.rows);
    this.onpage?.();
  }
}
