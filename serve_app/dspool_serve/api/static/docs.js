"use strict";

// From this file's own address: a proxy may offer the service below any path.
const ROOT = new URL("..", document.currentScript.src).pathname.slice(0, -1);

// Text goes in as text only: nothing of the document can become markup.
function element(name, about, ...children) {
  const made = document.createElement(name);
  Object.assign(made, about || {});
  made.append(...children);
  return made;
}

function resolved(schema, spec, seen) {
  if (schema === null || typeof schema !== "object") return schema;
  if (Array.isArray(schema)) return schema.map((one) => resolved(one, spec, seen));
  if (typeof schema.$ref === "string") {
    const name = schema.$ref.split("/").pop();
    if (seen.includes(name)) return { $ref: name };
    return resolved(spec.components.schemas[name], spec, [...seen, name]);
  }
  return Object.fromEntries(Object.entries(schema).map(([key, value]) => [key, resolved(value, spec, seen)]));
}

function table(heads, rows) {
  const row = (cells, kind) => element("tr", {}, ...cells.map((cell) => element(kind, {}, cell)));
  return element("table", {}, row(heads, "th"), ...rows.map((cells) => row(cells, "td")));
}

function code(value) {
  return element("pre", { textContent: typeof value === "string" ? value : JSON.stringify(value, null, 2) });
}

function media(content, spec) {
  const shown = [];
  for (const [type, about] of Object.entries(content || {})) {
    shown.push(element("p", { textContent: type }));
    for (const [name, example] of Object.entries(about.examples || {})) {
      shown.push(element("p", { textContent: "Example: " + name }), code(example.value));
    }
    if (about.example) shown.push(code(about.example));
    for (const [name, schema] of Object.entries(about["x-events"] || {})) {
      shown.push(
        element("details", {}, element("summary", { textContent: "event: " + name }), code(resolved(schema, spec, []))),
      );
    }
    shown.push(
      element("details", {}, element("summary", { textContent: "Schema" }), code(resolved(about.schema, spec, []))),
    );
  }
  return shown;
}

function tryIt(path, method, operation) {
  const fields = (operation.parameters || []).map((parameter) => {
    const input = element("input", { name: parameter.name });
    if (parameter.name === "pool") input.value = "default";
    return [parameter, input];
  });
  const content = operation.requestBody && operation.requestBody.content["application/json"];
  const example = content && Object.values(content.examples || {})[0];
  const body = content ? element("textarea", { value: example ? JSON.stringify(example.value, null, 2) : "{}" }) : null;
  const answer = element("pre", { textContent: "" });
  const send = element("button", { type: "button", textContent: "Send" });
  send.addEventListener("click", async () => {
    let url = ROOT + path;
    const query = new URLSearchParams();
    const headers = {};
    for (const [parameter, input] of fields) {
      if (parameter.in === "path") url = url.replace("{" + parameter.name + "}", encodeURIComponent(input.value));
      else if (input.value && parameter.in === "query") query.set(parameter.name, input.value);
      else if (input.value) headers[parameter.name] = input.value;
    }
    const token = document.getElementById("token").value;
    if (token) headers.authorization = "Bearer " + token;
    if (body) headers["content-type"] = "application/json";
    answer.textContent = "…";
    try {
      const text = query.toString();
      const got = await fetch(url + (text ? "?" + text : ""), { method, headers, body: body ? body.value : undefined });
      answer.textContent = got.status + "\n";
      const reader = got.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let part = await reader.read(); !part.done; part = await reader.read()) answer.textContent += part.value;
    } catch (failed) {
      answer.textContent += String(failed);
    }
  });
  const inputs = fields.map(([parameter, input]) => element("label", {}, parameter.name + " ", input));
  const summary = element("summary", { textContent: "Try it" });
  return element("details", {}, summary, ...inputs, ...(body ? [body] : []), element("p", {}, send), answer);
}

function shownOperation(path, method, operation, spec) {
  const summary = element(
    "summary",
    {},
    element("span", { className: "method " + method, textContent: method.toUpperCase() }),
    element("code", { className: "path", textContent: path }),
    " " + operation.summary,
  );
  const box = element("details", { className: "operation" }, summary);
  box.dataset.words = (method + " " + path + " " + operation.summary).toLowerCase();
  box.addEventListener("toggle", () => {
    if (!box.open || box.childElementCount > 1) return;
    const parameters = (operation.parameters || []).map((
      one,
    ) => [one.name, one.in, one.required ? "required" : "", one.description || JSON.stringify(one.schema)]);
    if (parameters.length) {
      box.append(element("h2", { textContent: "Parameters" }), table(["name", "in", "", "what"], parameters));
    }
    if (operation.requestBody) {
      box.append(element("h2", { textContent: "Body" }), ...media(operation.requestBody.content, spec));
    }
    box.append(element("h2", { textContent: "Answers" }));
    for (const [status, answer] of Object.entries(operation.responses)) {
      const content = status.startsWith("2") ? media(answer.content, spec) : [];
      box.append(
        element(
          "details",
          { open: status.startsWith("2") },
          element("summary", { textContent: status + " " + answer.description }),
          ...content,
        ),
      );
    }
    box.append(tryIt(path, method, operation));
  });
  return box;
}

async function main() {
  const spec = await (await fetch(ROOT + "/openapi.json")).json();
  document.getElementById("about").textContent = spec.info.summary + " · " + spec.info.version + " · OpenAPI " +
    spec.openapi;
  const shown = [];
  for (const [path, item] of Object.entries(spec.paths)) {
    for (const [method, operation] of Object.entries(item)) shown.push(shownOperation(path, method, operation, spec));
  }
  document.getElementById("operations").append(...shown);
  document.getElementById("find").addEventListener("input", (event) => {
    const words = event.target.value.toLowerCase().split(/\s+/);
    for (const box of shown) box.hidden = !words.every((word) => box.dataset.words.includes(word));
  });
}

main();
