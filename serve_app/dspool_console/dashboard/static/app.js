// The page: who is here, which view the address means, and the stream that feeds it.

import { login, logout, me as askMe, onSignedOut, pools as poolNames, Problem } from "./api.js";
import { fill, h } from "./dom.js";
import { clock } from "./format.js";
import { Live } from "./live.js";
import { empty, failed, loading } from "./parts.js";
import { PoolData } from "./pool.js";
import { address, RANGE, RANGES, Shell, VIEWS } from "./shell.js";

const RENEW_MS = 240_000;
const POOLS_MS = 10_000;
const HELLO_MS = 400;
const ASLEEP_MS = 30_000;
const main = document.getElementById("main");

class App {
  constructor() {
    this.shell = new Shell({
      pick: (pool) => this.go(pool, this.place.view),
      range: (seconds) => this.setRange(seconds),
      pause: () => this.pause(),
      leave: async () => {
        await logout();
        location.reload();
      },
    });
    this.range = RANGE;
    this.paused = false;
    this.place = {};
    addEventListener("hashchange", () => this.route());
    // The hash is the address of the view: this link moves the focus and nothing else.
    document.querySelector(".skip").addEventListener("click", (event) => {
      event.preventDefault();
      main.focus();
      main.scrollIntoView();
    });
    document.addEventListener("visibilitychange", () => this.looked());
    onSignedOut(() => this.signIn("You were signed out; sign in again to go on."));
  }

  async start() {
    try {
      this.me = await askMe();
    } catch (problem) {
      fill(main, failed(problem, () => this.start()));
      return;
    }
    if (this.me.login_needed) return this.signIn("");
    this.enter();
  }

  enter() {
    this.shell.open(this.me);
    this.pools = this.me.pools;
    clearInterval(this.renewing);
    clearInterval(this.looking);
    this.renewing = setInterval(() => askMe().catch(() => {}), RENEW_MS);
    this.looking = setInterval(() => this.look(), POOLS_MS);
    this.place = {};
    this.route();
  }

  async look() {
    try {
      const names = await poolNames();
      const had = this.pools.length;
      this.pools = names;
      this.shell.pools(names, this.place.pool);
      if (!had && names.length) this.route();
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
    }
  }

  async signIn(why) {
    this.leave();
    clearInterval(this.renewing);
    clearInterval(this.looking);
    this.shell.open(null);
    fill(this.shell.banner);
    const { loginView } = await import("./views/login.js");
    loginView(main, why, async (token) => {
      this.me = await login(token);
      this.enter();
    });
  }

  go(pool, view, arg = null, range = this.range) {
    location.hash = address(pool, view, arg, range === RANGE ? null : { range });
  }

  read() {
    const [path, search] = location.hash.replace(/^#\/?/, "").split("?");
    const [pool, view, ...rest] = path.split("/").map(unescaped);
    const asked = new URLSearchParams(search);
    return {
      pool: pool || this.pools[0] || null,
      view: view || "overview",
      arg: rest.join("/") || null,
      range: RANGES.some(([value]) => value === asked.get("range")) ? Number(asked.get("range")) : RANGE,
    };
  }

  route() {
    if (!this.me || this.me.login_needed) return;
    const place = this.read();
    const same = ["pool", "view", "arg"].every((key) => place[key] === this.place[key]);
    this.shell.pools(this.pools, place.pool);
    const ranged = same && place.range !== this.range;
    this.range = place.range;
    this.shell.place(place.pool, place.view, this.range);
    if (same) {
      this.view?.moved?.();
      return ranged && this.view?.rerange ? this.load(this.turn) : undefined;
    }
    this.leave();
    this.place = place;
    if (!place.pool) {
      this.shell.state("connecting");
      fill(
        main,
        empty(
          "No pool yet",
          "This service has no pool. Start one with `dspool up` or `Pool.start(...)`; it appears here by itself.",
        ),
      );
      return;
    }
    if (!this.pools.includes(place.pool)) {
      fill(
        main,
        empty(
          "There is no such pool",
          `This service has no pool called ${place.pool}.`,
          this.pools.length
            ? h("a", { class: "button", href: address(this.pools[0], "overview") }, `Go to pool ${this.pools[0]}`)
            : null,
        ),
      );
      return;
    }
    if (!VIEWS.some(([id]) => id === place.view)) {
      this.shell.state("connecting");
      fill(
        main,
        empty(
          "There is no such page",
          `Nothing here is called ${place.view}.`,
          h("a", { class: "button", href: address(place.pool, "overview") }, "Go to the overview"),
        ),
      );
      return;
    }
    if (this.data?.name !== place.pool) this.data = new PoolData(place.pool);
    this.show(place);
  }

  async show(place) {
    const turn = (this.turn = Symbol(place.view));
    const module = await import(`./views/${place.view}.js`);
    if (this.turn !== turn) return;
    const ctx = {
      pool: place.pool,
      arg: place.arg,
      me: this.me,
      admin: this.me.role === "admin",
      data: this.data,
      range: () => this.range,
      // How far back the charts reach: their range, and what they are zoomed to.
      span: () => spanOf(this.range, zoomOf(new URLSearchParams(location.hash.split("?")[1] ?? ""))),
      // A stretch of time that charts are zoomed to, as the address has it.
      zoom: () => zoomOf(new URLSearchParams(location.hash.split("?")[1] ?? "")),
      setZoom: (zoom) => {
        const [from, to] = zoom ?? [];
        const range = this.range === RANGE ? null : this.range;
        const asked = zoom ? { range, from: from.toFixed(1), to: to.toFixed(1) } : { range };
        history.pushState(null, "", address(place.pool, place.view, place.arg, asked));
      },
      refresh: () => this.refresh(),
      href: (view, arg = null, asked = null) => address(place.pool, view, arg, asked),
      query: () => new URLSearchParams(location.hash.split("?")[1] ?? ""),
      // An entry of its own in the history: the way back leads to what was shown before.
      setQuery: (asked) => history.pushState(null, "", address(place.pool, place.view, place.arg, asked)),
    };
    this.view = module.create(ctx);
    fill(main, loading(this.view.what ?? place.view));
    this.connect();
    if (!this.view.eager) await Promise.race([this.hello, new Promise((done) => setTimeout(done, HELLO_MS))]);
    if (this.turn === turn) await this.load(turn);
    if (this.turn === turn) scrollTo(0, 0);
  }

  /** Fetches what the view shows; frames that come meanwhile wait for it. */
  async load(turn) {
    this.early = [];
    try {
      await Promise.all([this.data.overview ? null : this.data.loadOverview(), this.view.load()]);
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      if (this.turn !== turn || problem.status === 401) return;
      this.early = null;
      this.standing = false;
      fill(main, failed(problem, () => this.load(turn)));
      return;
    }
    if (this.turn !== turn) return;
    this.shell.firing(this.data.overview.alerts);
    if (!this.standing) fill(main, this.view.node);
    this.standing = true;
    this.view.draw();
    main.dataset.shows = [this.place.view, this.place.arg].filter(Boolean).join("/");
    if (!performance.getEntriesByName("useful").length) requestAnimationFrame(() => performance.mark("useful"));
    const early = this.early;
    this.early = null;
    for (const [kind, frame] of early ?? []) this.take(kind, frame);
  }

  async refresh() {
    if (!this.view || this.early) return;
    this.data.forget();
    await this.load(this.turn);
  }

  connect() {
    this.shell.state("connecting");
    let greeted;
    this.hello = new Promise((resolve) => (greeted = resolve));
    const topics = ["overview", ...(this.view.topics ?? [])];
    let first = true;
    this.live = new Live(
      this.place.pool,
      topics,
      (kind, frame) => {
        if (kind === "hello") {
          greeted();
          if (!first && !frame.resumed) this.refresh();
          first = false;
        } else if (kind === "reset") this.refresh();
        else if (kind === "error") {
          this.reason = frame.detail ?? frame.title ?? "";
          this.shell.state("silent", "", this.reason || "It is asked again every second.");
        } else this.take(kind, frame);
      },
      (state) => this.connection(state),
    );
    if (this.paused) this.stand();
  }

  connection(state) {
    if (this.paused) return;
    if (state === "lost") {
      this.lostAt ??= Date.now() / 1000;
      this.shell.state("lost", clock(this.lostAt));
      // A refused stream does not say why; asking says it, and leads to the login when that is the reason.
      askMe().then((me) => me.login_needed && this.signIn("You were signed out; sign in again to go on."), () => {});
    } else {
      // A stream that opens has told nothing yet: the first figures make it live.
      this.lostAt = null;
      if (this.shell.kind === "lost") this.shell.state("connecting");
    }
  }

  take(kind, frame) {
    if (this.early) return this.early.push([kind, frame]);
    if (!this.standing) return undefined;
    if (kind === "tick") {
      if (!this.paused) this.shell.state("live");
      this.data.tick(frame);
    }
    if (kind === "event") this.data.event(frame);
    if (frame.alerts && kind === "tick") this.shell.firing(frame.alerts);
    this.view.live?.(kind, frame);
    return undefined;
  }

  pause() {
    this.paused = !this.paused;
    if (this.paused) return this.stand();
    this.live?.close();
    this.connect();
    return this.refresh();
  }

  /** A tab that nobody looks at lets its stream go: a browser has only a handful of connections to one host. */
  looked() {
    clearTimeout(this.dozing);
    if (document.hidden) {
      this.dozing = setTimeout(() => {
        this.asleep = Boolean(this.live) && !this.paused;
        if (this.asleep) this.live.close();
      }, ASLEEP_MS);
    } else if (this.asleep) {
      this.asleep = false;
      this.connect();
      this.refresh();
    }
  }

  stand() {
    this.live?.close();
    this.shell.state("paused", clock(Date.now() / 1000));
  }

  setRange(seconds) {
    this.go(this.place.pool, this.place.view, this.place.arg, seconds);
  }

  leave() {
    delete main.dataset.shows;
    this.turn = null;
    this.live?.close();
    this.view?.close?.();
    this.view = this.live = null;
    this.standing = false;
    this.early = null;
    this.lostAt = null;
  }
}

function spanOf(range, zoom) {
  const ago = zoom ? Date.now() / 1000 - zoom[0] : 0;
  return Math.max(range, Number(RANGES.find(([value]) => value >= ago)?.[0] ?? RANGES.at(-1)[0]));
}

function zoomOf(asked) {
  const [from, to] = ["from", "to"].map((name) => Number(asked.get(name) ?? Number.NaN));
  return from < to ? [from, to] : null;
}

function unescaped(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

new App().start();
