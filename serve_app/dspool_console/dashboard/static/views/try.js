// One program, tried: a form from its schema, its answer as it comes, and the lines that ask the same.

import { follow, get, poolPath, Problem, SERVICE } from "../api.js";
import { fill, h, say } from "../dom.js";
import { count, duration } from "../format.js";
import { InputFields, NotAValue } from "../input_fields.js";
import { badge, empty, facts, head, panel, toast } from "../parts.js";
import { curl, python, shortened } from "../same_call.js";

export const create = (ctx) => new Try(ctx);

class Try {
  constructor(ctx) {
    this.ctx = ctx;
    this.what = "the programs";
    this.node = h("div", { class: "stack" });
    this.may = ctx.me.role !== "reader";
  }

  async load() {
    if (this.program) return; // what was typed stays
    const { programs } = await get(`${poolPath(this.ctx.pool, "programs")}?limit=1000`);
    this.names = programs.map((one) => one.program);
    const name = this.ctx.arg ?? this.names[0];
    if (name === undefined || !this.names.includes(name)) return;
    this.program = await get(poolPath(this.ctx.pool, "programs", name));
  }

  draw() {
    if (this.drawn) return;
    this.drawn = Boolean(this.program);
    const picker = h(
      "select",
      {
        "aria-label": "Program",
        on: { change: (event) => (location.hash = this.ctx.href("try", event.target.value)) },
      },
      this.names.map((name) => h("option", { value: name }, name)),
    );
    picker.value = this.program?.program ?? "";
    const title = head("Try it", picker);
    title.style.marginBottom = "0";
    if (!this.program) {
      const [what, why] = this.names.length
        ? ["There is no such program", `This pool has no program called ${this.ctx.arg}.`]
        : ["No program yet", "This pool has no pool program. `dspool deploy` gives it one."];
      fill(this.node, title, h("section", { class: "panel" }, empty(what, why)));
      return;
    }
    this.inputs = new InputFields(this.program.inputs ?? null);
    this.answer = h("div", { class: "answer" }, h("p", { class: "muted" }, "Nothing asked yet."));
    this.doing = h("span", { class: "muted", role: "status" });
    this.run = h("button", { type: "submit", class: "primary" }, "Run");
    this.stop = h("button", { type: "button", hidden: true, on: { click: () => this.asking?.abort() } }, "Stop");
    this.code = h("div", { class: "code" }, h("p", { class: "muted" }, "Run it once: the same call stands here then."));
    if (!this.may) {
      this.run.setAttribute("aria-disabled", "true");
      say(this.doing, "Running needs the role caller; you are reader.");
    }
    const form = h(
      "form",
      { class: "inputs", "aria-label": "Inputs", novalidate: true },
      this.inputs.node,
      h("div", { class: "buttons" }, this.run, this.stop, this.doing),
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.ask();
    });
    form.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
    });
    const about = [this.program.info.module, `version ${this.program.version}`].filter(Boolean).join(", ");
    fill(
      this.node,
      title,
      h(
        "div",
        { class: "columns" },
        panel("Inputs", { actions: h("span", { class: "muted small" }, about) }, form),
        panel("Answer", {}, this.answer),
      ),
      panel("The same from your own code", {}, this.code),
    );
  }

  async ask() {
    if (!this.may) return toast("Running needs the role caller; you are reader.", true);
    if (this.asking) return undefined;
    let inputs;
    try {
      inputs = await this.inputs.read();
    } catch (refused) {
      if (refused instanceof NotAValue) return undefined;
      throw refused;
    }
    const stop = (this.asking = new AbortController());
    const began = performance.now();
    this.run.disabled = true;
    this.stop.hidden = false;
    say(this.doing, "Running");
    this.showCode(inputs);
    const parts = new Map();
    fill(this.answer);
    try {
      const path = poolPath(this.ctx.pool, "programs", this.program.program, "stream");
      await follow(path, { inputs }, stop.signal, (kind, data) => this.take(kind, data, parts));
      say(this.doing, `Done in ${duration((performance.now() - began) / 1000)}`);
    } catch (failed) {
      this.refused(failed, stop.signal.aborted);
    } finally {
      this.asking = null;
      this.run.disabled = !this.may;
      this.stop.hidden = true;
    }
    return undefined;
  }

  take(kind, data, parts) {
    if (kind === "status") say(this.doing, data.text);
    else if (kind === "token") this.part(data.field, parts).append(data.text);
    else if (kind === "field") this.show(this.part(data.field, parts), data.value);
    else if (kind === "final") {
      for (const [name, value] of Object.entries(data.outputs)) this.show(this.part(name, parts), value);
      // What an agent's turns wrote is no output.
      for (const [name, shown] of parts) if (!(name in data.outputs)) shown.closest("section").remove();
      this.answer.append(this.facts(data));
    }
  }

  part(name, parts) {
    if (!parts.has(name)) {
      const shown = h("pre", { class: "text", tabindex: 0, "aria-label": name });
      parts.set(name, shown);
      this.answer.append(h("section", {}, h("h3", {}, name), shown));
    }
    return parts.get(name);
  }

  show(place, value) {
    const text = typeof value === "string";
    place.classList.toggle("text", text);
    say(place, text ? value : JSON.stringify(value, null, 2));
  }

  facts(result) {
    const { ctx } = this;
    const usage = Object.values(result.usage ?? {});
    const sum = (name) => usage.reduce((all, one) => all + (Number(one[name]) || 0), 0);
    const cost = sum("cost_usd");
    const marks = ["offline", "cached", "truncated"].filter((name) => result[name]);
    return facts([
      ["Ran", duration(result.timings.run_s)],
      ["Waited", duration(result.timings.wait_s)],
      ["Tokens", usage.length ? `${count(sum("prompt_tokens"))} in, ${count(sum("completion_tokens"))} out` : "none"],
      cost ? ["Cost", `$${cost.toPrecision(3)}`] : null,
      ["Version", String(result.program_version)],
      ["Worker", h("a", { class: "id", href: ctx.href("workers", result.worker) }, result.worker)],
      [
        "Operation and its trace",
        h("a", { class: "id", href: ctx.href("operations", result.operation_id) }, result.operation_id),
      ],
      marks.length ? ["Marks", marks.map((name) => badge("info", name))] : null,
    ]);
  }

  refused(failed, stopped) {
    if (stopped) return say(this.doing, "Stopped");
    if (!(failed instanceof Problem) && failed.name !== "TypeError") throw failed;
    say(this.doing, "Failed");
    const details = failed.details ?? {};
    const operation = details.operation_id;
    const more = details.traceback ?? details.errors;
    return this.answer.append(
      h(
        "div",
        { class: "refused", role: "alert" },
        h("p", {}, badge("error", failed.code || "no_connection")),
        h("p", { class: "problem" }, failed.message),
        more ? h("pre", { tabindex: 0 }, typeof more === "string" ? more : JSON.stringify(more, null, 2)) : null,
        operation
          ? h("p", {}, "Operation ", h("a", { class: "id", href: this.ctx.href("operations", operation) }, operation))
          : null,
      ),
    );
  }

  showCode(inputs) {
    const { pool, me } = this.ctx;
    const name = this.program.program;
    const token = me.expires_at !== null;
    const url = location.origin + poolPath(pool, "programs", name, "execute");
    const forms = [
      ["Shell", (given) => curl(url, given, token)],
      ["Python", (given) => python(SERVICE, pool, name, given, token)],
    ];
    fill(
      this.code,
      forms.map(([title, text]) => {
        const copy = h("button", { type: "button", class: "quiet", "aria-label": `Copy for ${title}` }, "Copy");
        copy.addEventListener("click", () => copied(text(inputs)));
        return h(
          "div",
          {},
          h("h3", {}, title, copy),
          h("pre", { tabindex: 0, "aria-label": `${title} code` }, text(shortened(inputs))),
        );
      }),
    );
  }

  close() {
    this.asking?.abort();
  }
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    toast("Copied");
  } catch {
    toast("The browser does not let this page copy; select the text instead.", true);
  }
}
