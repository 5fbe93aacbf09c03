// Numbers and times for people, each with its unit.

import { h } from "./dom.js";

export const NONE = "–";
const SPACE = "\u00a0";

const known = (value) => typeof value === "number" && Number.isFinite(value);
const three = (value) => {
  const size = Math.abs(value);
  return value.toFixed(size >= 100 || value === 0 ? 0 : size >= 10 ? 1 : 2);
};
const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** [number, unit], so that a card can set the unit smaller. */
export const parts = {
  duration(seconds) {
    if (!known(seconds)) return [NONE, ""];
    if (seconds === 0) return ["0", "ms"];
    if (seconds < 0.001) return [three(seconds * 1e6), "µs"];
    if (seconds < 1) return [three(seconds * 1000), "ms"];
    if (seconds < 100) return [three(seconds), "s"];
    return [longer(seconds), ""];
  },
  percent(share, digits = 0) {
    return known(share) ? [(share * 100).toFixed(digits), "%"] : [NONE, ""];
  },
  rate(value, unit = "/s") {
    if (!known(value)) return [NONE, ""];
    return [value >= 10_000 ? `${three(value / 1000)}k` : value >= 1000 ? grouped.format(value) : three(value), unit];
  },
  count(value, unit = "") {
    if (!known(value)) return [NONE, ""];
    const shown = value >= 1e6
      ? `${three(value / 1e6)}M`
      : value >= 100_000
      ? `${three(value / 1000)}k`
      : Number.isInteger(value) || value >= 100
      ? grouped.format(value)
      : three(value);
    return [shown, unit];
  },
  megabytes(value) {
    if (!known(value) || value <= 0) return [NONE, ""];
    return value >= 1024 ? [three(value / 1024), "GB"] : [value.toFixed(0), "MB"];
  },
};

const joined = ([number, unit]) => (unit ? number + SPACE + unit : number);
export const duration = (seconds) => joined(parts.duration(seconds));
export const percent = (share, digits = 0) => joined(parts.percent(share, digits));
export const rate = (value, unit) => joined(parts.rate(value, unit));
export const count = (value, unit) => joined(parts.count(value, unit));
export const megabytes = (value) => joined(parts.megabytes(value));
export const plural = (number, one, many = `${one}s`) =>
  `${grouped.format(number)}${SPACE}${number === 1 ? one : many}`;

function longer(seconds) {
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes}${SPACE}min ${String(Math.floor(seconds % 60)).padStart(2, "0")}${SPACE}s`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours}${SPACE}h ${String(minutes % 60).padStart(2, "0")}${SPACE}min`;
  return `${Math.floor(hours / 24)}${SPACE}days`;
}

const clockText = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const shortText = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const dayText = new Intl.DateTimeFormat("en-GB", {
  day: "numeric",
  month: "short",
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
});

export const clock = (at) => clockText.format(at * 1000);
export const shortClock = (at) => shortText.format(at * 1000);
const utc = (at) => new Date(at * 1000).toISOString().replace("T", " ").replace(/\.\d+Z$/, " UTC");

/** A local time; UTC is in the title. Of another day it says the day too. */
export function time(at) {
  if (!known(at) || at <= 0) return h("span", { class: "muted" }, NONE);
  const other = Math.abs(Date.now() / 1000 - at) > 64_800;
  const iso = new Date(at * 1000).toISOString();
  return h("time", { datetime: iso, title: utc(at), class: "nowrap" }, other ? dayText.format(at * 1000) : clock(at));
}

/** How long ago, as text: "12.0 s ago". */
export const ago = (at, now = Date.now() / 1000) => {
  if (!known(at) || at <= 0) return NONE;
  const seconds = Math.max(0, now - at);
  return seconds < 1 ? "just now" : `${seconds < 100 ? `${Math.floor(seconds)}${SPACE}s` : longer(seconds)} ago`;
};

/** How old, in one unit: "2.4 h". */
export function age(since, now = Date.now() / 1000) {
  if (!known(since) || since <= 0) return NONE;
  const seconds = Math.max(0, now - since);
  if (seconds < 60) return `${Math.floor(seconds)}${SPACE}s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)}${SPACE}min`;
  return seconds < 172_800 ? `${(seconds / 3600).toFixed(1)}${SPACE}h` : `${Math.floor(seconds / 86_400)}${SPACE}days`;
}

export const agoTime = (at) =>
  known(at) && at > 0
    ? h("time", { datetime: new Date(at * 1000).toISOString(), title: utc(at), class: "nowrap" }, ago(at))
    : h("span", { class: "muted" }, NONE);
