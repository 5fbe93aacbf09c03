// What the pool's processes logged of one operation or one worker, for admins.

import { get, poolPath, query } from "./api.js";
import { fill, h } from "./dom.js";
import { empty, failed, panel } from "./parts.js";

const LINES = 200;

export class LogPanel {
  // `choice`: `{ operation }` or `{ worker }`.
  constructor(ctx, title, choice) {
    this.ctx = ctx;
    this.choice = choice;
    this.body = h("div", {});
    const again = h("button", { type: "button", class: "quiet", on: { click: () => this.load() } }, "Refresh");
    this.node = panel(title, { actions: ctx.admin ? again : null }, this.body);
  }

  async load() {
    if (!this.ctx.admin) {
      fill(this.body, h("p", { class: "muted" }, `Logs need the role admin; you are ${this.ctx.me.role}.`));
      return;
    }
    try {
      const page = await get(poolPath(this.ctx.pool, "logs") + query({ ...this.choice, limit: LINES }));
      this.draw(page);
    } catch (problem) {
      fill(this.body, failed(problem, () => this.load()));
    }
  }

  draw({ lines, truncated, filtered }) {
    if (!lines.length) {
      fill(this.body, empty("Nothing logged", "No process of this pool wrote a line about it, or the lines are gone."));
      return;
    }
    const text = h(
      "pre",
      { class: "log", tabindex: "0", role: "region", "aria-label": "Log" },
      lines.map((line) => line.text).join("\n"),
    );
    const left = [
      truncated ? "there are more lines" : "",
      filtered ? "what did not come by logging is left out while content capture is off" : "",
    ].filter(Boolean);
    fill(this.body, text, left.length ? h("p", { class: "muted small" }, left.join("; ")) : null);
    text.scrollTop = text.scrollHeight;
  }
}
