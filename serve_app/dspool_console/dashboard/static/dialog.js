// Actions: asked about first, told about after. Who may not act sees the button and why it does nothing.

import { Problem } from "./api.js";
import { fill, h } from "./dom.js";
import { toast } from "./parts.js";

/**
 * A button that acts. `ask(): {title, text, verb, danger?, fields?}` fills the confirmation; `run(values)` acts and
 * returns what to tell when it worked. `open()` instead shows something of its own.
 */
export function actionButton(ctx, { label, ask, run, done, open, title = "", quiet = true }) {
  const allowed = ctx.admin;
  const why = `Needs the role admin; you are ${ctx.me.role}.`;
  return h(
    "button",
    {
      type: "button",
      class: quiet ? "quiet" : "",
      title: allowed ? title : why,
      "aria-disabled": allowed ? null : "true",
      on: {
        click: () => {
          if (!allowed) return toast(why, true);
          return open ? open() : confirm(ask(), run, done);
        },
      },
    },
    label,
    allowed ? null : h("span", { class: "for-readers" }, ` (${why})`),
  );
}

export function confirm({ title, text, verb, danger = false, fields = [] }, run, done) {
  const before = document.activeElement;
  const problem = h("p", { class: "problem", role: "alert", hidden: true });
  const cancel = h("button", { type: "button", value: "cancel", on: { click: () => dialog.close() } }, "Cancel");
  const act = h("button", { type: "submit", class: danger ? "danger" : "primary" }, verb);
  const form = h(
    "form",
    { method: "dialog" },
    h("h2", { id: "dialog-title" }, title),
    h("p", { id: "dialog-text" }, text),
    fields.map((field) => h("label", { class: "field" }, h("span", {}, field.label), field.input)),
    problem,
    h("div", { class: "buttons" }, cancel, act),
  );
  const dialog = h("dialog", { "aria-labelledby": "dialog-title", "aria-describedby": "dialog-text" }, form);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    act.disabled = true;
    problem.hidden = true;
    try {
      const inputs = Object.fromEntries(fields.map((field) => [field.name, field.input]));
      const values = Object.fromEntries(fields.map((field) => [field.name, field.input.value]));
      const told = await run(values, inputs);
      dialog.close();
      if (told) toast(told);
      done?.();
    } catch (failed) {
      if (!(failed instanceof Problem)) throw failed;
      fill(problem, failed.message);
      problem.hidden = false;
    } finally {
      act.disabled = false;
    }
  });
  dialog.addEventListener("close", () => {
    dialog.remove();
    if (before?.isConnected) before.focus();
  });
  document.body.append(dialog);
  dialog.showModal();
  (fields[0]?.input ?? cancel).focus();
}
