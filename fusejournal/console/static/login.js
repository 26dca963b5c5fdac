// Logging in, or choosing a password by a one-time code.

import { post, session } from "./api.js";
import { h, failure } from "./dom.js";

export function loginView(place, done) {
  let isFirst = false;
  const draw = () => {
    const problem = h("div", {});
    const field = (words, name, type, autocomplete) => h("label", {}, words,
      h("input", { name, type, autocomplete, required: true, autocapitalize: "none", spellcheck: "false" }));
    const form = h("form", { onsubmit: submit },
      field("Name", "name", "text", "username"),
      isFirst ? field("One-time code", "code", "text", "one-time-code") : null,
      isFirst
        ? h("label", {}, "New password, at least 12 characters",
          h("input", { name: "password", type: "password", autocomplete: "new-password", minlength: 12, required: true }))
        : field("Password", "password", "password", "current-password"),
      problem,
      h("button", { class: "main" }, isFirst ? "Choose the password" : "Log in"),
      h("button", { type: "button", class: "plain", onclick: () => { isFirst = !isFirst; draw(); } },
        isFirst ? "I have a password" : "I have a one-time code"));
    async function submit(event) {
      event.preventDefault();
      const button = form.querySelector("button.main");
      button.disabled = true;
      try {
        Object.assign(session, await post(isFirst ? "/api/password" : "/api/login", Object.fromEntries(new FormData(form))));
        done();
      } catch (error) {
        problem.replaceChildren(failure(error));
        button.disabled = false;
      }
    }
    place.replaceChildren(h("div", { class: "card login" }, h("h1", {}, isFirst ? "Choose a password" : "Log in"), form,
      isFirst ? h("p", { class: "small soft" }, "The code is what 'fusejournal console user add NAME' has shown.") : null));
    form.querySelector("input").focus();
  };
  draw();
}
