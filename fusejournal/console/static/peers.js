// The peers of a volume's node: pairing two by a code, and pausing and resuming one.

import { poll, post, encode, volumePath } from "./api.js";
import { h, say, failure, facts, field, command, period, quoted, asked, otherWays } from "./dom.js";
import { confirmed, openDialog } from "./dialogs.js";

const POLL_MS = 1500;

// -- pause and resume ------------------------------------------------------------------------------

export function pauseButton(view, peer, kind = "") {
  const isPaused = peer.state === "paused";
  const way = isPaused ? "resume" : "pause";
  const words = isPaused
    ? `Ships ${view.volume} to ${peer.name} again, from where it was.`
    : `Nothing of ${view.volume} is shipped to ${peer.name} until you resume it: what is written meanwhile is not there. Its place in the journal is kept, within what the policy of the journal allows.`;
  const open = () => confirmed({
    title: `${isPaused ? "Resume" : "Pause"} ${peer.name}`, words, button: isPaused ? "Ship to it again" : "Pause it",
    command: `fusejournal peer ${way} ${quoted(view.volume)} ${quoted(peer.name)}`,
    act: async () => {
      await post(`${volumePath(view.agent, view.volume)}/peers/${encode(peer.name)}/${way}`);
      say(isPaused ? `Shipping to ${peer.name} again` : `Nothing is shipped to ${peer.name} now`);
    },
  });
  return h("button", { type: "button", class: kind || null, onclick: open, "aria-label": `${isPaused ? "Resume" : "Pause"} ${peer.name}` }, isPaused ? "Resume" : "Pause");
}

// -- pairing ---------------------------------------------------------------------------------------

export function pairButtons(view, node) {
  return [h("button", { type: "button", onclick: () => giveCode(view, node) }, "Give out a code…"),
    h("button", { type: "button", onclick: () => useCode(view, node) }, "Pair by a code…")];
}

const url = (view) => `${volumePath(view.agent, view.volume)}/pairing`;

function giveCode(view, node) {
  const words = "Another node that uses the code is this one's peer then, and ships the volume to it. The code is good once and for ten minutes; one that was given out before is taken back.";
  const remark = node.role === "primary" ? h("p", { class: "note warning" }, "This is a primary, and takes nothing from the node that uses the code. To ship to a mirror, have the mirror give out the code, and use it here.") : null;
  confirmed({
    title: `Give out a code on ${view.volume} on ${view.agent}`, words, extra: remark, button: "Give out a code",
    command: `fusejournal pair ${quoted(view.volume)}`,
    act: async () => showCode(view, await post(url(view))),
  });
}

function showCode(view, opened) {
  const state = h("p", { role: "status" });
  const waiting = () => { state.textContent = "Waiting for the other node. Closing this takes the code back."; };
  let isOver = false;
  const close = async () => {
    if (isOver) return;
    isOver = true;
    try {
      await post(`${url(view)}/${opened.id}/close`);
      say("The code was taken back");
    } catch (error) {
      say(error.message);
    }
  };
  const done = h("button", { type: "button", onclick: () => dialog.close() }, "Close");
  const dialog = h("dialog", { "aria-label": `A code of ${view.volume} on ${view.agent}`, onclose: close },
    h("h2", {}, "The code"),
    h("p", { class: "code" }, opened.code),
    facts([["this node", opened.node], ["fingerprint", h("code", {}, opened.fingerprint)], ["listens at", opened.listen], ["good for", period(opened.seconds_left)]]),
    h("p", {}, "On the other node, where VOLUME is its name for the volume; or by “Pair by a code” on its card here:"),
    command(opened.use_command),
    opened.may_be_elsewhere ? h("p", { class: "soft small" }, "Any address of this machine goes there that the other reaches. The name before it is what the other calls this node.") : null,
    state, h("div", { class: "row" }, done), otherWays([["Take the code back", asked(`${url(view)}/${opened.id}/close`)]]));
  waiting();
  openDialog(dialog, done);
  const look = async () => {
    if (isOver) return;
    try {
      const now = await poll(`${url(view)}/${opened.id}`);
      isOver ||= now.state !== "waiting";
      if (now.state === "paired") state.replaceChildren(h("strong", {}, `Paired with ${now.peer.name}`), `: ${now.peer.fingerprint}`);
      else if (now.state !== "waiting") state.textContent = ENDED[now.state] ?? `The code is ${now.state}.`;
      else if (now.log?.length) state.textContent = `Waiting. Last try: ${now.log.at(-1)}`;
    } catch (error) {
      state.replaceChildren(failure(error));
      if (error.status === 401) isOver = true;
    }
    setTimeout(look, POLL_MS);
  };
  setTimeout(look, POLL_MS);
}

const ENDED = {
  failed: "The code was right, but the two were not paired.", expired: "The code was not used in time: make a new one.",
  closed: "The code was taken back, or a newer one was given out.",
};

function useCode(view, node) {
  const line = h("code", { "aria-label": "The command line that does the same" });
  const value = (name) => form.elements.namedItem(name).value.trim();
  const show = () => {
    const standby = form.elements.namedItem("standby").checked ? " --standby" : "";
    line.textContent = `fusejournal pair ${quoted(view.volume)} ${quoted(`${value("peer") || "NAME"}=${value("address") || "ADDR:PORT"}`)} ${quoted(value("code") || "CODE")}${standby}`;
  };
  const problem = h("div", {});
  const go = h("button", { class: "main" }, "Pair");
  const submit = async (event) => {
    event.preventDefault();
    go.disabled = true;
    problem.replaceChildren();
    try {
      const paired = await post(`${volumePath(view.agent, view.volume)}/peers`, {
        peer: value("peer"), address: value("address"), code: value("code"), standby: form.elements.namedItem("standby").checked,
      });
      say(`Paired with ${paired.peer.name}`);
      dialog.close();
    } catch (error) {
      problem.replaceChildren(failure(error));
      go.disabled = false;
      go.focus();
    }
  };
  const form = h("form", { class: "stacked", onsubmit: submit, oninput: show },
    field("Call it", "peer", { required: true, placeholder: "cellar" }),
    field("Where it listens", "address", { required: true, placeholder: "192.168.1.7:7710" }),
    field("The code that it gave out", "code", { required: true, autocomplete: "off", placeholder: "7K3M-Q0ZV-9X2C-HT5A" }),
    h("label", { class: "check" }, h("input", { type: "checkbox", name: "standby" }), "Ship to it only once this node is the primary: for two mirrors of one primary"),
    problem, h("div", { class: "row" }, go, h("button", { type: "button", onclick: () => dialog.close() }, "Cancel")));
  const title = `Pair ${view.volume} on ${view.agent} with another node`;
  const dialog = h("dialog", { "aria-label": title }, h("h2", {}, title),
    h("p", {}, "The volume is shipped to the node that gave out the code, which has to be a mirror."),
    node.role === "primary" ? null : h("p", { class: "note warning" }, "This is a mirror, and would ship on what it has. If the other is its primary, that is the wrong way round: have this node give out a code, and use it there."),
    form, h("div", { class: "command" }, line));
  show();
  openDialog(dialog, form.elements.namedItem("peer"));
}
