// Dialogs: before what should not happen by one click, and to show something apart.

import { h, failure, focusAgain, focusIn, command as commandLine } from "./dom.js";

// Shows *dialog* above all else until it is closed, with the focus within it. Then the focus goes back
// to where it was: one that a dialog has opened in its own place gives it back to where that one had it.
export function openDialog(dialog, first = null) {
  const main = document.getElementById("main");
  const below = openers.get([...document.querySelectorAll("dialog[open]")].at(-1));
  const { opener, was } = below ?? { opener: document.activeElement, was: focusIn(main) };
  openers.set(dialog, { opener, was });
  document.body.append(dialog);
  dialog.addEventListener("close", () => {
    dialog.remove();
    if (document.querySelector("dialog[open]")) return;
    if (opener.isConnected && !opener.disabled) opener.focus({ preventScroll: true });
    else if (was) focusAgain(main, was);
  });
  dialog.showModal();
  first?.focus();
}

// What had the focus when a dialog was opened, by the dialog.
const openers = new WeakMap();

// Asks for *wanted* to be typed, then acts; an error of that is shown, and nothing is closed.
export function confirmTyped({ title, words, wanted, button, command, act, extra = null }) {
  const problem = h("div", {});
  const input = h("input", { name: "confirm", required: true, autocomplete: "off", autocapitalize: "none", spellcheck: "false" });
  const go = h("button", { class: "danger", disabled: true }, button);
  input.addEventListener("input", () => { go.disabled = input.value !== wanted; });
  const dialog = h("dialog", { "aria-label": title });
  const submit = async (event) => {
    event.preventDefault();
    go.disabled = true;
    try {
      await act(input.value, new FormData(event.target));
      dialog.close();
    } catch (error) {
      problem.replaceChildren(failure(error));
      go.disabled = input.value !== wanted;
      input.focus();
    }
  };
  dialog.append(h("h2", {}, title), h("p", {}, words), extra ?? "",
    h("form", { class: "stacked", onsubmit: submit },
      h("label", {}, h("span", {}, "To confirm, type ", h("strong", {}, wanted)), input), problem,
      h("div", { class: "row" }, go, h("button", { type: "button", onclick: () => dialog.close() }, "Cancel"))),
    command ? commandLine(command) : "");
  openDialog(dialog, input);
}

// Says what it does, with the command line that does the same, and acts by one click more; an error
// of that is shown, and nothing is closed.
export function confirmed({ title, words, button, command, act, extra = null }) {
  const problem = h("div", {});
  const go = h("button", { type: "button", class: "main" }, button);
  const dialog = h("dialog", { "aria-label": title });
  go.addEventListener("click", async () => {
    go.disabled = true;
    try {
      await act();
      dialog.close();
    } catch (error) {
      problem.replaceChildren(failure(error));
      go.disabled = false;
      go.focus();
    }
  });
  dialog.append(h("h2", {}, title), h("p", {}, words), extra ?? "", problem,
    h("div", { class: "row" }, go, h("button", { type: "button", onclick: () => dialog.close() }, "Cancel")),
    command ? commandLine(command) : "");
  openDialog(dialog, go);
}
