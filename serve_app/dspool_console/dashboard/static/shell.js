// What stands around each view: pool picker, range, pause, connection, who is here, the list of views.

import { query } from "./api.js";
import { fill, h, say } from "./dom.js";
import { segments } from "./parts.js";

export const VIEWS = [
  ["overview", "Overview"],
  ["workers", "Workers"],
  ["sessions", "Sessions"],
  ["operations", "Operations"],
  ["errors", "Errors"],
  ["sizing", "Sizing"],
  ["deployments", "Deployments"],
  ["try", "Try it"],
  ["events", "Events"],
  ["report", "Report"],
];
export const RANGES = [
  ["60", "1 min"],
  ["300", "5 min"],
  ["900", "15 min"],
  ["3600", "1 h"],
  ["86400", "24 h"],
  ["604800", "7 days"],
];

export const RANGE = 300;
/** Views whose charts show a range of time. */
const RANGED = ["overview", "workers"];

export const address = (pool, view, arg = null, asked = null) =>
  `#/${[pool, view, arg].filter((part) => part !== null).map(encodeURIComponent).join("/")}${query(asked ?? {})}`;

export class Shell {
  constructor(acts) {
    this.acts = acts;
    this.nav = document.getElementById("nav");
    this.controls = document.getElementById("controls");
    this.banner = document.getElementById("banner");
    this.connection = h("span", { class: "badge", id: "connection" }, "connecting");
    this.pause = h("button", {
      type: "button",
      id: "pause",
      "aria-pressed": "false",
      on: { click: () => acts.pause() },
    }, "Pause");
    this.picker = h("select", {
      id: "pool",
      "aria-label": "Pool",
      on: { change: (event) => acts.pick(event.target.value) },
    });
    this.ranges = h("span", { id: "range" });
    this.who = h("span", { class: "push controls-who" });
    this.alerts = h("span", { class: "count", hidden: true });
  }

  /** Draws everything for who is logged in; nothing but the brand for nobody. */
  open(me) {
    document.body.classList.toggle("bare", !me);
    if (!me) return fill(this.controls);
    const out = me.expires_at === null
      ? null
      : h("button", { type: "button", class: "quiet", on: { click: () => this.acts.leave() } }, "Sign out");
    fill(this.who, h("span", { class: "muted small" }, `${me.principal} · ${me.role}`), out);
    this.who.style.display = "inline-flex";
    this.who.style.alignItems = "center";
    return fill(this.controls, this.picker, this.ranges, this.pause, this.connection, this.who);
  }

  pools(names, chosen) {
    const have = [...this.picker.options].map((option) => option.value).join("\n");
    if (have !== names.join("\n")) fill(this.picker, names.map((name) => h("option", { value: name }, name)));
    this.picker.value = chosen ?? "";
    this.picker.disabled = !names.length;
  }

  place(pool, view, range) {
    if (!this.nav.children.length) {
      fill(
        this.nav,
        VIEWS.map(([id, name]) => h("a", { "data-view": id }, name, id === "events" ? this.alerts : null)),
      );
    }
    for (const link of this.nav.children) {
      const asked = RANGED.includes(link.dataset.view) && range !== RANGE ? { range } : null;
      link.setAttribute("href", address(pool ?? "", link.dataset.view, null, asked));
      if (link.dataset.view === view) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    const ranged = RANGED.includes(view);
    this.ranges.hidden = !ranged;
    fill(
      this.ranges,
      ranged ? segments("Time range", "range", RANGES, String(range), (value) => this.acts.range(Number(value))) : null,
    );
    const name = VIEWS.find(([id]) => id === view)?.[1] ?? "";
    document.title = pool ? `${name} · ${pool} · dspool` : "dspool";
  }

  firing(alerts) {
    const number = alerts?.firing ?? 0;
    this.alerts.hidden = !number;
    say(this.alerts, String(number));
    this.alerts.title = `${number} firing`;
  }

  state(kind, since, reason) {
    const texts = { lost: "disconnected", silent: "no answer" };
    // Green only once figures come: nothing on the page is known to be well before that, or after.
    const tone = { live: "good", paused: "warn", silent: "bad", lost: "bad" }[kind] ?? "busy";
    this.kind = kind;
    this.connection.className = `badge ${tone}`;
    say(this.connection, texts[kind] ?? kind);
    document.body.classList.toggle("stale", kind !== "live");
    this.pause.setAttribute("aria-pressed", String(kind === "paused"));
    say(this.pause, kind === "paused" ? "Resume" : "Pause");
    if (kind === "lost") {
      this.say(
        "trouble",
        `No connection to the service since ${since}.`,
        "What you see is from then; trying again by itself.",
      );
    } else if (kind === "paused") this.say("", `Paused at ${since}.`, "The figures stand still until you resume.");
    else if (kind === "silent") this.say("trouble", "No answer from the pool.", reason);
    else fill(this.banner);
  }

  say(tone, text, more) {
    const key = text + more;
    if (this.banner.dataset.key === key && this.banner.children.length) return;
    this.banner.dataset.key = key;
    fill(this.banner, h("div", { class: `bannered ${tone}` }, text, h("span", { class: "small" }, more)));
  }
}
