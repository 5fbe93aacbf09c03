// What charts of one view share: the time under the cursor, the zoom, and the turn to draw.

let library = null;

/** Chart.js, loaded once and only when a chart is wanted: figures are read before pictures are. */
export function chartLibrary() {
  library ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = new URL("./vendor/chart.js", import.meta.url);
    script.onload = () => resolve(globalThis.Chart);
    script.onerror = () => {
      library = null;
      reject(new Error("the chart library could not be loaded"));
    };
    document.head.append(script);
  });
  return library;
}

const queue = new Set();
let turning = false;

/** Runs at most one waiting job a frame: seven charts at once would hold the page for longer than a frame. */
export function inTurn(job) {
  queue.add(job);
  if (turning) return;
  turning = true;
  const turn = () => {
    const [next] = queue;
    queue.delete(next);
    next?.();
    if (queue.size) requestAnimationFrame(turn);
    else turning = false;
  };
  requestAnimationFrame(turn);
}

export class PlotGroup {
  /** `ctx` keeps the zoom in the address; `onzoom` is called when it changes. */
  constructor(ctx = null, onzoom = null) {
    this.ctx = ctx;
    this.plots = new Set();
    this.cursor = null;
    this.zoom = ctx?.zoom() ?? null;
    this.from = 0;
    this.to = 1;
    this.onzoom = onzoom;
    this.scheme = matchMedia("(prefers-color-scheme: dark)");
    this.recolour = () => this.plots.forEach((plot) => plot.recolour());
    this.scheme.addEventListener("change", this.recolour);
  }

  /** The stretch of time that all show: the zoom, else the range that ends now. */
  frame(now, range) {
    [this.from, this.to] = this.zoom ?? [now - range, now];
    if (this.cursor !== null && (this.cursor < this.from || this.cursor > this.to)) this.point(null);
  }

  draw(series, markers) {
    this.markers = markers ?? [];
    for (const plot of this.plots) plot.take(series);
  }

  point(time) {
    this.cursor = time;
    for (const plot of this.plots) plot.showCursor();
  }

  zoomTo(from, to) {
    this.zoom = from === null ? null : [from, to];
    this.ctx?.setZoom(this.zoom);
    this.onzoom?.(this.zoom);
  }

  /** The address changed: back, forward, or a link. */
  moved() {
    const zoom = this.ctx.zoom();
    if (String(zoom) === String(this.zoom)) return;
    this.zoom = zoom;
    this.onzoom?.(zoom);
  }

  close() {
    this.scheme.removeEventListener("change", this.recolour);
    for (const plot of this.plots) plot.close();
    this.plots.clear();
  }
}
