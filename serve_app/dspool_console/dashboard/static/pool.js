// The pool that is shown: its overview, its history and the markers. Frames of the stream are merged here.

import { get, poolPath, query } from "./api.js";
import { Series } from "./series.js";

const HOUR = 3600;
const MAX_MARKERS = 500;
const TICKS_KEPT_S = 10;
const LONG_KEPT_S = 60;

/** Columns that charts of a pool draw: of a week all others would come for nothing. */
export const DRAWN = [
  ...["utilization", "throughput", "p50_s", "p95_s", "p99_s", "error_rate", "queue_depth", "running", "wait_mean_s"],
  ...["wait_p95_s", "wait_p99_s", "desired", "size", "spare", "overflow", "input_tokens", "output_tokens"],
];

/** What to ask of the history for a chart of the last `range` seconds. */
export const askedOf = (range) => ({ range, resolution: range > HOUR ? LONG_KEPT_S : null });

export class PoolData {
  constructor(name) {
    this.name = name;
    this.overview = null;
    this.series = new Series(HOUR);
    this.markers = [];
    this.loaded = 0;
    this.isLong = false;
    this.ticks = [];
    this.stale = false;
  }

  /** Something was changed or missed: all is to be asked for again, and no answer from before will do. */
  forget() {
    this.loaded = 0;
    this.overview = null;
    this.stale = true;
  }

  async loadOverview() {
    this.overview = await get(poolPath(this.name, "overview") + (this.stale ? "?fresh=1" : ""));
    this.stale = false;
    // An answer may be a second old. What the stream said since then is not said again.
    for (const frame of this.ticks) if (frame.at > this.overview.at) this.merge(frame);
    return this.overview;
  }

  /**
   * The history of the last `range` seconds; an hour is kept once it was loaded, so a shorter range asks nothing. More
   * than an hour comes in points of minutes, and anew every minute.
   */
  async loadHistory(range) {
    const isLong = range > HOUR;
    const isHere = isLong ? this.loaded === range && this.now - this.loadedAt < LONG_KEPT_S : this.loaded >= range;
    if (this.isLong === isLong && isHere) return;
    const turn = (this.turn = Symbol(range));
    const [history] = await Promise.all([
      get(poolPath(this.name, "metrics", "table") + query({ ...askedOf(range), columns: isLong ? DRAWN : null })),
      this.loadMarkers(range),
    ]);
    // Another range was asked for meanwhile.
    if (this.turn !== turn) return;
    this.series.load(history);
    // The stream may have said more than the history, which is a second old.
    if (!isLong) { for (const frame of this.ticks) if (frame.points) this.series.append(frame.points); }
    this.loaded = range;
    this.isLong = isLong;
    this.loadedAt = this.now;
  }

  async loadMarkers(range = HOUR) {
    this.markers = (await get(poolPath(this.name, "markers") + query({ range: Math.max(range, HOUR) }))).markers;
  }

  tick(frame) {
    if (frame.points && !this.isLong) this.series.append(frame.points);
    this.ticks.push(frame);
    while (this.ticks[0].at < frame.at - TICKS_KEPT_S) this.ticks.shift();
    this.merge(frame);
  }

  merge(frame) {
    const overview = this.overview;
    if (!overview) return;
    overview.at = frame.at ?? overview.at;
    for (const name of ["now", "pool", "totals"]) {
      if (frame[name] === null) overview[name] = null;
      else if (frame[name]) overview[name] = { ...overview[name], ...frame[name] };
    }
    for (const name of ["diagnosis", "health", "alerts", "errors", "telemetry"]) {
      if (name in frame) overview[name] = frame[name];
    }
    if (frame.programs) {
      const rows = new Map(overview.programs.map((row) => [row.name, row]));
      for (const row of frame.programs) rows.set(row.name, { ...rows.get(row.name), ...row });
      overview.programs = [...rows.values()];
    }
  }

  event(row) {
    if (!row.marker) return;
    this.markers.push(row.marker);
    if (this.markers.length > MAX_MARKERS) this.markers.shift();
  }

  /** The time that is "now" for the charts: the service's, so that a wrong clock here shifts nothing. */
  get now() {
    return Math.max(this.series.last ?? 0, this.overview?.at ?? 0) || Date.now() / 1000;
  }
}
