// The lines that do by themselves what the page has done: for a shell, and for Python.

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** The call with curl; with a token from the environment where the service asks for one. */
export function curl(url, inputs, needsToken) {
  const lines = [
    `curl ${quoted(url)}`,
    ...(needsToken ? ['  -H "Authorization: Bearer $DSPOOL_TOKEN"'] : []),
    "  -H 'Content-Type: application/json'",
    `  -d ${quoted(JSON.stringify({ inputs }))}`,
  ];
  return lines.join(" \\\n");
}

export function python(origin, pool, program, inputs, needsToken) {
  const token = needsToken ? ', token=os.environ["DSPOOL_TOKEN"]' : "";
  return [
    ...(needsToken ? ["import os", ""] : []),
    "from dspool import BlockingRemotePool",
    "",
    `with BlockingRemotePool(${literal(origin)}, pool=${literal(pool)}${token}) as pool:`,
    `    result = pool.execute(${[literal(program), ...given(inputs)].join(", ")})`,
    "    print(result.outputs)",
  ].join("\n");
}

const WORD = /^[A-Za-z_][A-Za-z0-9_]*$/;
const KEYWORDS = new Set(
  ("False None True and as assert async await break class continue def del elif else except finally for from global " +
    "if import in is lambda nonlocal not or pass raise return try while with yield timeout_s").split(" "),
);

const given = (inputs) =>
  Object.keys(inputs).every((name) => WORD.test(name) && !KEYWORDS.has(name))
    ? Object.entries(inputs).map(([name, value]) => `${name}=${literal(value)}`)
    : [`**${literal(inputs)}`];

/** A value as Python writes it. JSON's texts are Python's as well. */
function literal(value) {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value === "object") {
    return `{${Object.entries(value).map(([name, one]) => `${JSON.stringify(name)}: ${literal(one)}`).join(", ")}}`;
  }
  return JSON.stringify(value);
}

const LONG = 400;

/** The same with long values cut, to look at; what is copied is whole. */
export function shortened(value) {
  if (typeof value === "string" && value.length > LONG) return `${value.slice(0, 60)}… (${value.length} characters)`;
  if (Array.isArray(value)) return value.map(shortened);
  if (value && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([name, one]) => [name, shortened(one)]));
  }
  return value;
}
