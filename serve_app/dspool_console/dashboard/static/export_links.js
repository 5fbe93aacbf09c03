// A chart's numbers to take away, as CSV and as JSON: what is seen is what is saved.

import { poolPath, query } from "./api.js";
import { h } from "./dom.js";

const FORMATS = ["csv", "json"];

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

/** Of figures that the service keeps: it sends all. `stretch()` gives {range} or {from, to}; `more()` what else. */
export const servedLinks = (ctx, title, chart, stretch, more = () => ({})) =>
  links(
    title,
    (link, format) =>
      link.setAttribute("href", poolPath(ctx.pool, "export") + query({ chart, format, ...more(), ...stretch() })),
  );

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

export const stretchOf = (
  group,
  range,
) => (group.zoom ? { from: group.zoom[0].toFixed(3), to: group.zoom[1].toFixed(3) } : { range });
