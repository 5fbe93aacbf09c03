// Parts that all views use: states, badges, panels, the bar of a share.

import { h } from "./dom.js";

export const panel = (title, props, ...children) => {
  const { actions, ...rest } = props ?? {};
  const heading = h("h2", {}, title);
  return h(
    "section",
    { ...rest, class: `panel ${rest.class ?? ""}`, "aria-label": title },
    h("header", {}, heading, actions && h("div", { class: "push" }, actions)),
    ...children,
  );
};

export const head = (title, ...right) =>
  h("div", { class: "head" }, h("h1", {}, title), right.length ? h("div", { class: "push" }, ...right) : null);

export const loading = (what) =>
  h(
    "div",
    { class: "state loading", role: "status" },
    h("span", { class: "spinner", "aria-hidden": "true" }),
    h("p", {}, `Loading ${what}`),
  );

export const empty = (title, text, ...more) =>
  h("div", { class: "state empty" }, h("h2", {}, title), text ? h("p", {}, text) : null, ...more);

export const failed = (problem, again) =>
  h(
    "div",
    { class: "state failed", role: "alert" },
    h(
      "h2",
      {},
      problem.status === 0
        ? "The service does not answer"
        : problem.status === 403
        ? "This is not yours to see"
        : problem.temporary
        ? "The pool cannot be asked now"
        : "This could not be loaded",
    ),
    h("p", {}, problem.message),
    again ? h("button", { type: "button", on: { click: again } }, "Try again") : null,
  );

const TONES = {
  ready: "good",
  healthy: "good",
  ok: "good",
  done: "good",
  live: "good",
  true: "good",
  starting: "busy",
  warming: "busy",
  loading: "busy",
  canary: "busy",
  "rolling out": "busy",
  spare: "busy",
  info: "",
  degraded: "warn",
  impaired: "warn",
  draining: "warn",
  paused: "warn",
  pending: "warn",
  warning: "warn",
  unknown: "warn",
  rejected: "warn",
  client_error: "warn",
  rolled_back: "warn",
  cancelled: "",
  "rolled back": "warn",
  unhealthy: "bad",
  failed: "bad",
  firing: "bad",
  error: "bad",
  timeout: "bad",
  critical: "bad",
  lost: "bad",
  denied: "bad",
};

export const badge = (state, text = state) => h("span", { class: `badge ${TONES[state] ?? ""}` }, text);

export const bar = (share, label, bad = false) => {
  const inner = h("i", {});
  inner.style.width = `${Math.round(Math.min(1, Math.max(0, share || 0)) * 100)}%`;
  return h("span", { class: `bar ${bad ? "bad" : ""}`, role: "img", "aria-label": label }, inner);
};

export const facts = (rows) =>
  h(
    "dl",
    { class: "facts" },
    rows.filter(Boolean).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
  );

export const segments = (legend, name, options, chosen, pick) =>
  h(
    "fieldset",
    { class: "segments", role: "radiogroup", "aria-label": legend },
    options.map(([value, text]) =>
      h(
        "label",
        {},
        h("input", {
          type: "radio",
          name,
          value,
          checked: value === chosen,
          on: { change: () => pick(value) },
        }),
        text,
      )
    ),
  );

export function toast(text, trouble = false) {
  const place = document.getElementById("toasts");
  const note = h("div", { class: `toast ${trouble ? "trouble" : ""}` }, text);
  place.append(note);
  setTimeout(() => note.remove(), trouble ? 9000 : 5000);
}
