// A chart's numbers to take away, as CSV and as JSON: what is seen is what is saved.

import { poolPath, query } from "./api.js";
import { h } from "./dom.js";

const FORMATS = ["csv", "json"];

/** Chart -> the columns of history that belong to it. */
export const CHARTS = {
  utilization: ["utilization"],
  throughput: ["throughput"],
  latency: ["p50_s", "p95_s", "p99_s", "mean_s"],
  errors: ["error_rate", "errors", "timeouts", "rejected", "retries"],
  queue: ["queue_depth", "running"],
  wait: ["wait_mean_s", "wait_p95_s", "wait_p99_s"],
  size: ["desired", "size", "active", "idle", "spare", "overflow"],
  tokens: ["input_tokens", "output_tokens"],
  sessions: ["sessions"],
  health: ["health"],
};
CHARTS.all = Object.values(CHARTS).flat();

const links = (title, wanted) =>
  FORMATS.map((format) => {
    const link = h(
      "a",
      { download: true, "aria-label": `${title} as ${format.toUpperCase()}`, href: "#" },
      format.toUpperCase(),
    );
    // Made at the moment it is wanted: the range and the zoom may have changed since it was drawn.
    const make = () => wanted(link, format);
    for (const type of ["pointerover", "focus", "click"]) link.addEventListener(type, make);
    return link;
  });

/** Of figures that the service keeps: it sends all. `interval()` gives {range} or {from, to}; `more()` what else. */
export const servedLinks = (ctx, title, chart, interval, more = () => ({})) =>
  links(title, (link, format) => tableLink(link, ctx.pool, chart, format, { ...more(), ...interval() }));

export function tableLink(link, pool, chart, format, more) {
  const columns = CHARTS[chart].join(",");
  link.setAttribute("href", poolPath(pool, "metrics", "table") + query({ columns, format, ...more }));
  link.setAttribute("download", `dspool-${pool}-${chart}.${format}`);
}

/** Of figures that only this page has: made here from `series()`, a `Series`, between two times. */
export const ownLinks = (title, file, series, frame) =>
  links(title, (link, format) => {
    const [from, to] = frame();
    if (link.href.startsWith("blob:")) URL.revokeObjectURL(link.href);
    const text = series()[format](from, to);
    link.setAttribute(
      "href",
      URL.createObjectURL(new Blob([text], { type: format === "csv" ? "text/csv" : "application/json" })),
    );
    link.setAttribute("download", `dspool-${file}.${format}`);
  });

export const intervalOf = (
  group,
  range,
) => (group.zoom ? { from: group.zoom[0].toFixed(3), to: group.zoom[1].toFixed(3) } : { range });
