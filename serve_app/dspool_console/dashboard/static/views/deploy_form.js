// Deploying from the page: a saved state or an import path for a program, tried on a canary first.

import { follow, poolPath, Problem, query } from "../api.js";
import { actionButton } from "../dialog.js";
import { h } from "../dom.js";
import { toast } from "../parts.js";

const WATCH_S = 10;

/** `programs()` are the names there are; `moment(rollout)` hears how far it is, as it comes. */
export function deployButton(ctx, { programs, moment }) {
  return actionButton(ctx, {
    label: "Deploy a version",
    title: "Put a new version of a program into service, one worker first",
    quiet: false,
    ask: () => ({
      title: "Deploy a version",
      text:
        "One worker tries it while the others go on with the version before. If it does worse, it is rolled back; " +
        "else all workers get it. What is left empty stays as it is in the current version.",
      verb: "Deploy",
      fields: fields(programs()),
    }),
    run: (values, inputs) => begun(ctx, values, inputs, moment),
  });
}

function fields(programs) {
  const names = h("datalist", { id: "deploy-programs" }, programs.map((name) => h("option", { value: name })));
  const input = (name, label, props) => ({ name, label, input: h("input", { type: "text", ...props }) });
  const program = input("program", "Program", {
    required: true,
    list: "deploy-programs",
    autocomplete: "off",
    value: programs.length === 1 ? programs[0] : "",
  });
  program.label = h("span", {}, "Program", names);
  return [
    program,
    input("state", "Saved state, a JSON file that DSPy's save() wrote", {
      type: "file",
      accept: ".json,application/json",
    }),
    input("import_path", "Import path, within allowed_imports", {
      placeholder: "shop.answers:Answer",
      autocomplete: "off",
    }),
    input("kwargs", "Arguments for it, a JSON object", { placeholder: '{"drafts": 3}', autocomplete: "off" }),
    input("canary_s", "Longest time to watch the canary, in seconds", {
      type: "number",
      min: 0,
      max: 3600,
      value: WATCH_S,
    }),
    { name: "new", label: "The name is a new program", input: h("input", { type: "checkbox", class: "short" }) },
  ];
}

const object = (text, what) => {
  let value;
  try {
    value = JSON.parse(text);
  } catch {
    value = null;
  }
  if (value === null || typeof value !== "object" || Array.isArray(value)) {
    throw new Problem(422, "invalid_request", `${what} must hold a JSON object.`);
  }
  return value;
};

async function bodyOf(values, inputs) {
  const body = { new: inputs.new.checked };
  const [file] = inputs.state.files;
  if (file) body.state = object(await file.text(), file.name);
  if (values.import_path.trim()) body.import_path = values.import_path.trim();
  if (values.kwargs.trim()) body.kwargs = object(values.kwargs, "The arguments");
  return body;
}

/** Returns when the deployment has begun; a refusal before that is the dialog's to show. */
async function begun(ctx, values, inputs, moment) {
  const program = values.program.trim();
  const path = poolPath(ctx.pool, "programs", program, "versions") + query({ canary_s: values.canary_s });
  const body = await bodyOf(values, inputs);
  return new Promise((resolve, refuse) => {
    let began = false;
    const take = (name, data) => {
      if (name === "status") moment(data);
      began = true;
      resolve(name === "final" ? `${program} is at version ${data.version}.` : `${program} is being deployed.`);
    };
    follow(path, body, undefined, take).then(
      () => resolve(`${program} was deployed.`),
      (problem) => (began ? toast(problem.message, true) : refuse(problem)),
    );
  });
}
