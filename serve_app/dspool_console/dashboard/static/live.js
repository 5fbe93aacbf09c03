// The stream of what happens, and whether it lives. EventSource connects again by itself; what it gives up on we retry.

import { liveAddress } from "./api.js";

const SILENT_MS = 20_000;
const WAITS_MS = [500, 1000, 2000, 4000];
const KINDS = ["hello", "tick", "workers", "event", "warmup", "sizing", "alerts", "reset", "error"];

export class Live {
  /** `take(kind, data)` gets each frame; `state("live" | "lost")` is told when that changes. */
  constructor(pool, topics, take, state) {
    this.pool = pool;
    this.topics = topics;
    this.take = take;
    this.state = state;
    this.failures = 0;
    this.opened = false;
    this.open();
    this.watch = setInterval(() => {
      if (this.opened && Date.now() - this.heard > SILENT_MS) this.again();
    }, 2000);
  }

  open() {
    this.heard = Date.now();
    const source = new EventSource(liveAddress(this.pool, this.topics));
    this.source = source;
    for (const kind of KINDS) {
      source.addEventListener(kind, (frame) => {
        // Failures of the connection are events called "error" too; those have no data.
        if (frame.data === undefined) return;
        this.heard = Date.now();
        if (kind === "hello") {
          this.failures = 0;
          this.opened = true;
          this.state("live");
        }
        this.take(kind, JSON.parse(frame.data));
      });
    }
    source.onerror = (failed) => {
      if (failed.data !== undefined || this.source !== source) return;
      this.state("lost");
      // A source that still tries keeps its place in the stream; one that was refused never comes back.
      if (source.readyState === EventSource.CLOSED || this.failures > 0) this.again();
      this.failures += 1;
    };
  }

  again() {
    this.source.close();
    this.opened = false;
    this.state("lost");
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.open(), WAITS_MS[Math.min(this.failures, WAITS_MS.length - 1)]);
  }

  close() {
    clearInterval(this.watch);
    clearTimeout(this.timer);
    this.source.close();
    this.source.onerror = null;
  }
}
