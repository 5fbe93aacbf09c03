// A form from a JSON Schema: a field for each input, which says what was put in. What has no field of its own is JSON.

import { fill, h } from "./dom.js";

const LONGEST_SHOWN = 4096;

export class NotAValue extends Error {}

/** Fields for the properties of an object's schema; `schema` may be null, then one field takes all inputs as JSON. */
export class InputFields {
  constructor(schema) {
    this.node = h("div", { class: "inputs" });
    const properties = Object.entries(schema?.properties ?? {});
    this.whole = schema && (properties.length || schema.additionalProperties === false) ? null : jsonField(
      "Inputs",
      { description: "this program does not say what it takes: all inputs by name, as JSON" },
      true,
      {},
    );
    this.fields = properties.map(([name, one]) => [
      name,
      fieldFor(name, resolved(one, schema.$defs ?? {}), (schema.required ?? []).includes(name), schema.$defs ?? {}),
    ]);
    fill(this.node, this.whole ? this.whole.node : this.fields.map(([, field]) => field.node));
    if (!this.whole && !this.fields.length) {
      this.node.append(h("p", { class: "muted" }, "This program takes no inputs."));
    }
  }

  /** The inputs by name; throws a NotAValue that names the field, and moves the focus there. */
  async read() {
    if (this.whole) return (await valueOf("Inputs", this.whole)) ?? {};
    const inputs = {};
    for (const [name, field] of this.fields) {
      const value = await valueOf(name, field);
      if (value !== undefined) inputs[name] = value;
    }
    return inputs;
  }
}

async function valueOf(name, field) {
  fill(field.problem);
  field.control.removeAttribute("aria-invalid");
  try {
    const value = await field.read();
    if (value === undefined && field.required) throw new NotAValue("is needed");
    return value;
  } catch (refused) {
    if (!(refused instanceof NotAValue)) throw refused;
    fill(field.problem, `${name} ${refused.message}`);
    field.control.setAttribute("aria-invalid", "true");
    field.control.focus();
    throw refused;
  }
}

function fieldFor(name, schema, required, defs) {
  if (schema.enum || "const" in schema) return choiceField(name, schema, required, schema.enum ?? [schema.const]);
  if (schema.type === "boolean") return choiceField(name, schema, required, [true, false]);
  if (schema.type === "number" || schema.type === "integer") return numberField(name, schema, required);
  if (media(schema)) return fileField(name, schema, required, media(schema));
  if (schema.type === "string") return textField(name, schema, required);
  return jsonField(name, schema, required, defs);
}

/** Without references and without the null of what may be left out. */
function resolved(schema, defs) {
  const { $ref: ref, ...own } = schema;
  if (ref) return resolved({ ...defs[ref.replace("#/$defs/", "")], ...own }, defs);
  const kinds = schema.anyOf?.filter((one) => one.type !== "null");
  if (kinds?.length === 1) {
    return resolved({ ...kinds[0], description: schema.description ?? kinds[0].description }, defs);
  }
  return schema;
}

const media = (schema) =>
  [schema, ...(schema.anyOf ?? [])].find((one) => one.contentEncoding === "base64")?.contentMediaType;

let numbers = 0;

/** A label, a control, what the schema says of it, and room for a complaint. */
function framed(name, required, control, wants, ...more) {
  const id = `input-${(numbers += 1)}`;
  const problem = h("span", { class: "problem", id: `${id}-problem`, role: "alert" });
  const about = h("span", { class: "wants", id: `${id}-about` }, wants);
  control.id = id;
  control.setAttribute("aria-describedby", `${id}-about ${id}-problem`);
  if (required) control.setAttribute("aria-required", "true");
  const label = h("label", { for: id }, name, required ? null : h("span", { class: "muted" }, " (optional)"));
  return { node: h("div", { class: "field" }, label, control, ...more, about, problem), control, problem, required };
}

const described = (schema, kind) => [schema.description, kind].filter(Boolean).join(" · ");

function textField(name, schema, required) {
  const long = !schema.format;
  const control = long
    ? h("textarea", { rows: 3, spellcheck: "false" })
    : h("input", { type: schema.format === "date" ? "date" : "text", spellcheck: "false" });
  const field = framed(name, required, control, described(schema, schema.format ?? "text"));
  // An empty text is a text where one is needed.
  return { ...field, read: () => (control.value === "" && !required ? undefined : control.value) };
}

function numberField(name, schema, required) {
  const whole = schema.type === "integer";
  const control = h("input", { type: "text", inputmode: whole ? "numeric" : "decimal" });
  const field = framed(name, required, control, described(schema, whole ? "whole number" : "number"));
  const read = () => {
    const text = control.value.trim();
    if (!text) return undefined;
    const value = Number(text);
    if (!Number.isFinite(value) || (whole && !Number.isInteger(value))) {
      throw new NotAValue(`is no ${whole ? "whole " : ""}number`);
    }
    return value;
  };
  return { ...field, read };
}

function choiceField(name, schema, required, values) {
  const control = h(
    "select",
    {},
    required ? null : h("option", { value: "" }, "left out"),
    values.map((value, index) =>
      h("option", { value: index }, typeof value === "string" ? value : JSON.stringify(value))
    ),
  );
  const field = framed(name, required, control, described(schema, ""));
  return { ...field, read: () => (control.value === "" ? undefined : values[Number(control.value)]) };
}

function fileField(name, schema, required, type) {
  const control = h("input", { type: "file", accept: type.includes("octet") ? null : type });
  const address = h("input", {
    type: "text",
    placeholder: "or a URL",
    "aria-label": `URL of ${name}`,
    spellcheck: "false",
  });
  const field = framed(name, required, control, described(schema, ""), address);
  const read = () => (control.files.length ? dataUrl(control.files[0]) : address.value.trim() || undefined);
  return { ...field, read };
}

function jsonField(name, schema, required, defs) {
  const control = h("textarea", { rows: 5, class: "json", spellcheck: "false" });
  if (required && schema.type) control.value = JSON.stringify(sample(schema, defs, 0), null, 2).slice(0, LONGEST_SHOWN);
  const kind = schema.type === "array" ? "a list, as JSON" : "JSON";
  const field = framed(name, required, control, described(schema, kind));
  const read = () => {
    const text = control.value.trim();
    if (!text) return undefined;
    try {
      return JSON.parse(text);
    } catch (odd) {
      throw new NotAValue(`is not JSON: ${odd.message}`);
    }
  };
  return { ...field, read };
}

/** What a value may look like, to begin with. */
function sample(given, defs, depth) {
  const schema = resolved(given, defs);
  if ("default" in schema) return schema.default;
  if (schema.enum) return schema.enum[0];
  if ("const" in schema) return schema.const;
  if (depth > 4) return null;
  if (schema.anyOf) return sample(schema.anyOf[0], defs, depth + 1);
  if (schema.type === "object" || schema.properties) {
    const needed = schema.required ?? [];
    const known = Object.entries(schema.properties ?? {}).filter(([name]) => needed.includes(name));
    return Object.fromEntries(known.map(([name, one]) => [name, sample(one, defs, depth + 1)]));
  }
  if (schema.type === "array") return schema.items ? [sample(schema.items, defs, depth + 1)] : [];
  return { string: "", integer: 0, number: 0, boolean: false }[schema.type] ?? null;
}

const dataUrl = (file) =>
  new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => failed(new NotAValue("cannot be read"));
    reader.readAsDataURL(file);
  });
