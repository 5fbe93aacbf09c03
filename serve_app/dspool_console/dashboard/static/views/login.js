import { Problem } from "../api.js";
import { fill, h } from "../dom.js";

/** Asks for a token; `enter(token)` logs in or throws a `Problem`. */
export function loginView(place, why, enter) {
  const input = h("input", {
    type: "password",
    id: "token",
    name: "token",
    autocomplete: "off",
    spellcheck: "false",
    required: true,
    "aria-describedby": "login-help",
  });
  const problem = h("p", { class: "problem", role: "alert" });
  const act = h("button", { type: "submit", class: "primary" }, "Sign in");
  const form = h(
    "form",
    {},
    h("label", { class: "field", for: "token" }, h("span", {}, "Access token")),
    input,
    problem,
    act,
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    act.disabled = true;
    fill(problem);
    try {
      await enter(input.value.trim());
    } catch (failed) {
      if (!(failed instanceof Problem)) throw failed;
      fill(problem, failed.status === 401 ? "This token is not known here, or it has ended." : failed.message);
      input.select();
    } finally {
      act.disabled = false;
    }
  });
  fill(
    place,
    h(
      "section",
      { class: "panel login", "aria-label": "Sign in" },
      h("h1", {}, "Sign in"),
      h(
        "p",
        { class: "muted", id: "login-help" },
        why || "This service asks for a token. An operator makes one with `dspool token new`.",
      ),
      form,
    ),
  );
  input.focus();
}
