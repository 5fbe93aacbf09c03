// Columns of measured points, and what of them fits on so many pixels.

const CUSHION = 300;

export class Series {
  constructor(keep = 3600) {
    this.keep = keep;
    this.clear();
  }

  clear() {
    this.at = [];
    this.columns = new Map();
    this.resolution = 1;
  }

  get length() {
    return this.at.length;
  }

  get last() {
    return this.at.length ? this.at[this.at.length - 1] : null;
  }

  load({ at, columns, resolution_s: resolution = 1 }) {
    this.at = at.slice();
    this.resolution = resolution;
    this.columns = new Map(Object.entries(columns).map(([name, values]) => [name, values.slice()]));
  }

  /** Adds newer points; what is already there is left out, so that a stream may begin before the history ends. */
  append({ at, columns }) {
    let added = 0;
    for (let index = 0; index < at.length; index += 1) {
      if (this.last !== null && at[index] <= this.last) continue;
      const before = this.at.length;
      this.at.push(at[index]);
      for (const [name, values] of Object.entries(columns)) {
        let column = this.columns.get(name);
        if (!column) this.columns.set(name, column = new Array(before).fill(null));
        column.push(values[index] ?? null);
      }
      for (const column of this.columns.values()) if (column.length === before) column.push(null);
      added += 1;
    }
    // Rarely and in one go: moving 3,600 points by one, each second, for each column, would be felt.
    const excess = this.at.length - this.keep;
    if (excess > CUSHION) {
      this.at.splice(0, excess);
      for (const column of this.columns.values()) column.splice(0, excess);
    }
    return added;
  }

  /** The index of the first point at or after `time`. */
  find(time) {
    let low = 0;
    let high = this.at.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.at[middle] < time) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** The value of the point nearest to `time`; null where nothing was measured. */
  value(name, time) {
    const index = this.find(time);
    const at = this.at;
    const near = index > 0 && (index >= at.length || time - at[index - 1] <= at[index] - time) ? index - 1 : index;
    if (near >= at.length || Math.abs(at[near] - time) > this.gap) return null;
    return this.columns.get(name)?.[near] ?? null;
  }

  /** The points between two times, as the service exports its own. */
  csv(from, to) {
    const { at, columns } = this.between(from, to);
    const names = Object.keys(columns);
    const rows = at.map((time, index) =>
      [new Date(time * 1000).toISOString(), time, ...names.map((name) => columns[name][index] ?? "")].join()
    );
    return `${[["time_utc", "time_s", ...names].join(), ...rows].join("\n")}\n`;
  }

  json(from, to) {
    return JSON.stringify({ resolution_s: this.resolution, ...this.between(from, to) });
  }

  between(from, to) {
    const first = this.find(from);
    const end = this.find(to + 1e-6);
    return {
      at: this.at.slice(first, end),
      columns: Object.fromEntries([...this.columns].map(([name, values]) => [name, values.slice(first, end)])),
    };
  }

  latest(name) {
    const column = this.columns.get(name);
    return column?.length ? column[column.length - 1] : null;
  }

  get gap() {
    return Math.max(3, 3 * this.resolution);
  }

  /**
   * Points for a chart of `pixels` width: of each bucket its lowest and its highest, so that a single bad second of an
   * hour is still seen. Buckets lie at multiples of their width, or the picture would shimmer as it moves.
   */
  thin(name, from, to, pixels, scale = 1) {
    const column = this.columns.get(name);
    const points = [];
    if (!column) return points;
    // Read once: this loop is what an hour of points costs each second.
    const { at, gap, resolution } = this;
    const first = Math.max(0, this.find(from) - 1);
    const end = Math.min(at.length, this.find(to) + 1);
    const width = end - first > pixels ? (to - from) / pixels : 0;
    const thinned = width > resolution;
    let [edge, low, high, before] = [-Infinity, -1, -1, at[first] ?? 0];
    const flush = () => {
      if (low < 0) return;
      const [one, two] = low < high ? [low, high] : [high, low];
      points.push({ x: at[one], y: column[one] * scale });
      if (one !== two) points.push({ x: at[two], y: column[two] * scale });
      low = high = -1;
    };
    for (let index = first; index < end; index += 1) {
      const value = column[index];
      const time = at[index];
      const known = typeof value === "number";
      if (!known || time - before > gap) {
        flush();
        edge = -Infinity;
        if (points.length && points[points.length - 1].y !== null) points.push({ x: time, y: null });
      }
      before = time;
      if (!known) continue;
      if (!thinned || time >= edge) {
        flush();
        edge = thinned ? (Math.floor(time / width) + 1) * width : time;
        low = high = index;
      } else if (value < column[low]) low = index;
      else if (value >= column[high]) high = index;
    }
    flush();
    return points;
  }
}
