// Dialogs before what should not happen by one click.

import { h, failure, command as commandLine } from "./dom.js";

// Asks for *wanted* to be typed, then acts; an error of that is shown, and nothing is closed.
export function confirmTyped({ title, words, wanted, button, command, act, extra = null }) {
  const problem = h("div", {});
  const input = h("input", { name: "confirm", required: true, autocomplete: "off", autocapitalize: "none", spellcheck: "false" });
  const go = h("button", { class: "danger", disabled: true }, button);
  input.addEventListener("input", () => { go.disabled = input.value !== wanted; });
  const dialog = h("dialog", { "aria-label": title, onclose: () => dialog.remove() });
  const submit = async (event) => {
    event.preventDefault();
    go.disabled = true;
    try {
      await act(input.value, new FormData(event.target));
      dialog.close();
    } catch (error) {
      problem.replaceChildren(failure(error));
      go.disabled = input.value !== wanted;
    }
  };
  dialog.append(h("h2", {}, title), h("p", {}, words), extra ?? "",
    h("form", { class: "stacked", onsubmit: submit },
      h("label", {}, h("span", {}, "To confirm, type ", h("strong", {}, wanted)), input), problem,
      h("div", { class: "row" }, go, h("button", { type: "button", onclick: () => dialog.close() }, "Cancel"))),
    command ? commandLine(command) : "");
  document.body.append(dialog);
  dialog.showModal();
  input.focus();
}

// Says what it does, with the command line that does the same, and acts by one click more; an error
// of that is shown, and nothing is closed.
export function confirmed({ title, words, button, command, act, extra = null }) {
  const problem = h("div", {});
  const go = h("button", { type: "button", class: "main", autofocus: true }, button);
  const dialog = h("dialog", { "aria-label": title, onclose: () => dialog.remove() });
  go.addEventListener("click", async () => {
    go.disabled = true;
    try {
      await act();
      dialog.close();
    } catch (error) {
      problem.replaceChildren(failure(error));
      go.disabled = false;
    }
  });
  dialog.append(h("h2", {}, title), h("p", {}, words), extra ?? "", problem,
    h("div", { class: "row" }, go, h("button", { type: "button", onclick: () => dialog.close() }, "Cancel")),
    command ? commandLine(command) : "");
  document.body.append(dialog);
  dialog.showModal();
}
