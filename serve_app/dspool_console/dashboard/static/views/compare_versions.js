// In what a version differs from the current one, and what both did at the same time.

import { get, poolPath, query } from "../api.js";
import { actionButton } from "../dialog.js";
import { fill, h } from "../dom.js";
import { empty } from "../parts.js";
import { comparison } from "./rollouts.js";

const PARTS = {
  program: "Program",
  instructions: "Instructions",
  demos: "Demonstrations",
  fields: "Fields",
  model: "Model",
  arguments: "Arguments",
  settings: "Settings",
  source: "Source",
};

export function compareButton(ctx, { program, version: current }, version) {
  const [old, fresh] = [Math.min(current, version), Math.max(current, version)];
  return actionButton(ctx, {
    label: "Compare",
    title: `What is different between version ${old} and version ${fresh}`,
    open: () => show(ctx, program, old, fresh),
  });
}

async function show(ctx, program, old, fresh) {
  const before = document.activeElement;
  const body = h("div", { role: "status" }, "Comparing");
  const close = h("button", { type: "button", on: { click: () => dialog.close() } }, "Close");
  const dialog = h(
    "dialog",
    { class: "wide", "aria-labelledby": "dialog-title" },
    h("h2", { id: "dialog-title" }, `${program}: version ${old} and version ${fresh}`),
    body,
    h("div", { class: "buttons" }, close),
  );
  dialog.addEventListener("close", () => {
    dialog.remove();
    if (before?.isConnected) before.focus();
  });
  document.body.append(dialog);
  dialog.showModal();
  close.focus();
  try {
    fill(
      body,
      found(await get(poolPath(ctx.pool, "programs", program, "compare") + query({ old, new: fresh })), old, fresh),
    );
  } catch (problem) {
    fill(body, h("p", { class: "bad" }, problem.message));
  }
}

function found({ differences, rollout }, old, fresh) {
  const value = (
    text,
  ) => (text === null ? h("span", { class: "muted" }, "none") : h("pre", { class: "compared" }, text));
  const names = ["What", "Where", `Version ${old}`, `Version ${fresh}`];
  return [
    differences.length
      ? h(
        "div",
        { class: "scroll", tabindex: 0, role: "region", "aria-label": "Differences" },
        h(
          "table",
          { class: "stacks" },
          h("caption", { class: "for-readers" }, "Differences"),
          h("thead", {}, h("tr", {}, names.map((name) => h("th", { scope: "col" }, name)))),
          h(
            "tbody",
            {},
            differences.map((one) =>
              h(
                "tr",
                {},
                h("td", { "data-label": names[0] }, PARTS[one.part]),
                h("td", { class: "id", "data-label": names[1] }, one.where),
                h("td", { class: "full", "data-label": names[2] }, value(one.before)),
                h("td", { class: "full", "data-label": names[3] }, value(one.after)),
              )
            ),
          ),
        ),
      )
      : empty("They are the same", "Same program, instructions, demonstrations, model settings, arguments and source."),
    rollout ? [h("h3", {}, "While both ran"), comparison(rollout)] : h(
      "p",
      { class: "muted small" },
      "No deployment is remembered in which both ran at the same time.",
    ),
  ];
}
