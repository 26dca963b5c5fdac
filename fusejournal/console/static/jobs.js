// Recovery: the jobs of all agents, and one of them with its plan, its progress and its results.

import { get, poll, post, may, encode } from "./api.js";
import * as app from "./app.js";
import { h, path, name, pill, number, size, time, command, failure, focusAgain, focusIn, refresh, say, facts, spinner, asked, otherWays } from "./dom.js";
import { confirmTyped } from "./dialogs.js";
import { begin } from "./timeline.js";

const POLL_MS = 700;
const AGAIN_MS = 3000;
const KINDS = { done: "good", planned: "warning", stopped: "warning", failed: "bad" };

function stateOf(job) {
  return pill(KINDS[job.state] ?? "", job.paused ? "paused" : job.state);
}

const moment = (job) => (job.version ? "a version" : `entry ${number(job.at)}`);
const TITLES = {
  undo: (job) => [job.of_job ? "Take back what a job did" : `Take back ${job.seqs?.length ? `entries ${job.seqs.join(", ")}` : "what a filter chose"}`],
  restore: (job) => ["Restore ", path(job.path), ` aside as of ${moment(job)}`],
  "in-place": (job) => ["Restore ", path(job.path), ` in place as of ${moment(job)}`],
  "version-create": (job) => ["Make a version", job.name ? [" ", name(job.name)] : null],
  "version-verify": () => ["Verify a version"],
  prune: () => ["Let go what the policy does not keep"],
  handoff: (job) => [`Hand over to ${job.peer}`],
  promote: (job) => [`Promote the mirror${job.force ? ", by force" : ""}`],
  demote: (job) => [`Demote the primary${job.force ? ", by force" : ""}`],
  rejoin: () => ["Rejoin"],
};
const titleOf = (job) => TITLES[job.kind]?.(job).flat() ?? ["A job that cannot be read"];
const CAN_PAUSE = new Set(["undo", "restore", "in-place", "version-create", "version-verify", "prune"]);
const CAN_STOP = new Set([...CAN_PAUSE, "handoff", "rejoin"]);
const DO = {
  handoff: (job) => `Hand over to ${job.peer} now`, promote: () => "Promote it", demote: () => "Demote it", rejoin: () => "Rejoin",
  restore: (job) => `Restore it: ${number(job.to_restore?.files)} files`, prune: () => "Let it go", undo: (job) => `Do it: ${number(job.action_count)} changes`, "in-place": (job) => `Do it: ${number(job.change_count)} changes`,
};
const WARNINGS = {
  prune: "What goes cannot be restored any more.",
  promote: "This begins a new reign. What only the old primary has is not here; when it comes back, that becomes a branch, and is undone there.",
  demote: "Changes get 'Read-only file system' at once, until another node is primary.",
  rejoin: "What only this node has becomes a branch, and is undone here.",
};

export async function jobsView(place) {
  const overview = app.overview ?? await get("/api/overview", {}, place.signal);
  // Each server apart: one that does not answer holds up no other.
  const sections = overview.agents.map((agent) => h("section", { class: "card", "aria-label": agent.name }, h("h2", {}, agent.name), h("div", {}, spinner())));
  place.replaceChildren(h("h1", {}, "Recovery"), ...sections);
  await Promise.all(overview.agents.map(async (agent, at) => {
    try {
      if (agent.error !== null) throw new Error(`It is not reached now: ${agent.error}`);
      const { jobs } = await get(`/api/agents/${encode(agent.name)}/jobs`, {}, place.signal);
      sections[at].lastChild.replaceChildren(jobTable(agent, jobs));
    } catch (error) {
      if (error.name !== "AbortError") sections[at].lastChild.replaceChildren(failure(error));
    }
  }));
}

function jobTable(agent, jobs) {
  if (!jobs.length) return h("p", { class: "soft" }, "No job yet: choose entries in a timeline, or a directory at a moment.");
  return h("div", { class: "scroll" }, h("table", { class: "stack" },
    h("thead", {}, h("tr", {}, ["Job", "Volume", "State", "By", "Asked for"].map((words) => h("th", { scope: "col" }, words)))),
    h("tbody", {}, jobs.map((job) => h("tr", {},
      h("td", { class: "wide" }, h("a", { href: app.link(["jobs", agent.name, job.id]) }, titleOf(job))),
      h("td", {}, job.volume ?? ""), h("td", {}, stateOf(job)), h("td", {}, job.user ?? ""), h("td", { class: "time" }, job.made_ns ? time(job.made_ns) : ""))))));
}

export async function jobView(place, agent, id) {
  const url = jobPath(agent, id);
  const order = async (word, fields = {}) => {
    const was = focusIn(shown);
    try {
      const job = await post(url, { order: word, ...fields });
      if (job.state === "removed") { app.go(["jobs"]); return; }
      await draw();
      focusAgain(shown, was);
    } catch (error) {
      await draw().catch(wait);
      if (fields.confirm !== undefined) throw error;
      say(error.message);
      focusAgain(shown, was);
    }
  };
  let timer;
  const problem = h("div", {});
  const shown = h("div", {});
  place.replaceChildren(problem, shown);
  const later = (ms) => { if (!place.signal.aborted) timer = setTimeout(() => draw(poll).catch(wait), ms); };
  // A server or console that is away comes back: what is shown till then is from before.
  const wait = (error) => {
    if (error.name === "AbortError" || error.status === 401) return;
    refresh(problem, failure(new Error(`How far it is, is not known now: ${error.message}`)));
    later(AGAIN_MS);
  };
  const draw = async (ask = get) => {
    clearTimeout(timer);
    const job = await ask(url, {}, place.signal);
    refresh(problem);
    refresh(shown, ...describe(job, agent, order));
    if (job.is_running) later(POLL_MS);
  };
  place.signal.addEventListener("abort", () => clearTimeout(timer));
  await draw();
}

function describe(job, agent, order) {
  return [
    h("p", {}, h("a", { href: app.link(["jobs"]) }, "All jobs")),
    h("div", { class: "head" }, h("h1", {}, titleOf(job)), stateOf(job)),
    h("div", { class: "card" },
      job.words ? h("p", { class: `note ${job.state === "failed" ? "bad" : job.state === "done" ? "good" : "warning"}`, role: "status" }, job.words) : null,
      job.refusal ? h("p", { class: "note bad" }, `It will be refused: ${job.refusal}`) : null,
      job.objection && !job.refusal ? h("p", { class: "note bad" }, `By force, although ${job.objection}`) : null,
      (job.warnings ?? []).map((words) => h("p", { class: "note warning" }, words)),
      job.is_running ? h("div", {}, h("progress", job.total ? { value: job.done, max: job.total, "aria-label": "Progress" } : { "aria-label": "Progress" }),
        h("p", { class: "soft small" }, `${job.stage ?? job.state}${job.done ? `: ${number(job.done)}${job.total ? ` of ${number(job.total)}` : ""}` : "…"}${job.held_seconds ? `, changes wait since ${job.held_seconds.toFixed(1)} s` : ""}`)) : null,
      facts([
        ["volume", h("a", { href: app.link(["v", agent, job.volume, "timeline"]) }, `${job.volume} on ${agent}`)],
        ["asked for", h("span", {}, time(job.made_ns), ` by ${job.user || "nobody known"}`)],
        ["takes back", job.of_job ? h("a", { href: app.link(["jobs", agent, job.of_job]) }, "this job") : null],
        ["to take back", job.chosen === undefined ? null : `${number(job.chosen)} entries${job.kept ? `; ${number(job.kept)} stay, because later changes rely on them` : ""}`],
        ["to be restored", job.to_restore ? `${number(job.to_restore.names)} names, ${size(job.to_restore.content_bytes)}` : null],
        ["into", job.kind === "restore" ? h("span", {}, h("code", {}, job.target), job.state === "done" && !job.has_restored ? " (removed)" : "") : null],
        ["restored", job.names === undefined ? null : `${number(job.names)} names`],
        ["to be written", job.kind === "in-place" && job.bytes ? `${size(job.bytes)} at most` : null],
        ["version", job.version?.seq ? h("a", { href: app.link(["v", agent, job.volume, "versions"], { version: job.version.key }) }, job.version.name ? name(job.version.name) : `entry ${number(job.version.seq)}`) : null],
        ["verified", job.verified ? `${number(job.verified.files)} files, ${number(job.verified.chunks)} chunks, ${size(job.verified.bytes)}` : null],
        ...(job.rows ?? []), ...rejoinRows(job.rejoin),
      ]),
      may(job.access) ? h("div", { class: "row" }, buttons(job, agent, order)) : null,
      command(job.command), may(job.access) ? otherWays(ordersOf(job).map(([words, body]) => [words, asked(jobPath(agent, job.id), body)])) : null),
    job.undo_command ? wayBackOf(job, agent) : null,
    job.has_restored && !job.is_running ? h("div", { class: "card" }, h("h2", {}, "To remove what was restored"), command(job.remove_command)) : null,
    job.prune ? pruneOf(job) : null,
    job.kind === "rejoin" ? rejoinSteps(job) : null,
    job.conflict_count ? conflictsOf(job) : null,
    job.actions?.length ? actionsOf(job) : null,
    job.changes?.length ? changesOf(job) : null,
  ].filter(Boolean);
}

// A job of its own, whose plan is shown first.
function wayBackOf(job, agent) {
  const undo = () => begin({ agent }, { kind: "undo", volume: job.volume, job: job.id });
  return h("div", { class: "card" }, h("h2", {}, "The way back from this"),
    may("operator") && !job.is_running ? h("div", { class: "row" }, h("button", { type: "button", onclick: undo }, "Plan to take it back")) : null,
    command(job.undo_command), otherWays([["Plan to take it back", asked(`/api/agents/${encode(agent)}/jobs`, { kind: "undo", volume: job.volume, job: job.id })]]));
}

const jobPath = (agent, id) => `/api/agents/${encode(agent)}/jobs/${encode(id)}`;

// What the buttons order, as the API takes it.
function ordersOf(job) {
  if (job.is_running) {
    return [CAN_PAUSE.has(job.kind) ? (job.paused ? ["Go on", { order: "resume" }] : ["Pause", { order: "pause" }]) : null,
      CAN_STOP.has(job.kind) ? ["Stop", { order: "stop" }] : null].filter(Boolean);
  }
  const seen = { ...(job.plan ? { plan: job.plan } : {}), ...(job.is_confirmed ? { confirm: job.volume } : {}) };
  return [job.state === "done" ? null : ["Do it", { order: "do", ...seen }], DO[job.kind] && job.state !== "done" ? ["Plan it anew", { order: "plan" }] : null,
    ["Remove this job from the list", { order: "remove" }]].filter(Boolean);
}

function isDoable(job) {
  if (job.kind === "undo") return job.chosen && !job.conflict_count;
  return !job.is_empty && !job.refusal;
}

function buttons(job, agent, order) {
  const button = (words, kind, act) => h("button", { type: "button", class: kind, onclick: (event) => { act(); event.target.disabled = true; } }, words);
  // What is done is the plan that is shown here, and not another that it has by now.
  const seen = job.plan ? { plan: job.plan } : {};
  const confirm = () => confirmTyped({
    title: titleOf(job).map((one) => one?.textContent ?? one ?? "").join(""), words: WARNINGS[job.kind], wanted: job.volume, button: DO[job.kind](job), command: job.command,
    act: (typed) => order("do", { ...seen, confirm: typed }),
  });
  const start = (words) => (job.is_confirmed ? h("button", { type: "button", class: "danger", onclick: confirm }, `${words}…`) : button(words, "main", () => order("do", seen)));
  if (job.is_running) {
    return [CAN_PAUSE.has(job.kind) ? (job.paused ? button("Go on", "main", () => order("resume")) : button("Pause", "", () => order("pause"))) : null,
      CAN_STOP.has(job.kind) ? button("Stop", "danger", () => order("stop")) : null];
  }
  const found = [];
  if (job.state === "planned" && isDoable(job)) found.push(start(DO[job.kind]?.(job) ?? "Do it"));
  // What has a plan goes on once that was seen: without one it is planned first.
  const canGoOn = job.has_plan || !DO[job.kind];
  if (canGoOn && (job.state === "stopped" || (job.state === "failed" && job.kind !== "undo"))) found.push(start(job.state === "stopped" ? "Go on" : "Try again"));
  if (DO[job.kind] && job.state !== "done") found.push(button("Plan it anew", "", () => order("plan")));
  if ((job.refusal || job.state === "failed") && ["promote", "demote"].includes(job.kind) && !job.force) {
    found.push(button("Plan it by force", "danger", () => begin({ agent }, { kind: job.kind, volume: job.volume, force: true })));
  }
  if (job.has_restored) found.push(button("Remove what was restored", "danger", () => order("remove-restored")));
  found.push(button("Remove this job from the list", "", () => order("remove")));
  return found;
}

function rejoinRows(told) {
  if (!told) return [];
  return [
    ["follows", told.source === null ? null : `${told.source}, in reign ${told.reign}`],
    ["both have", h("code", {}, told.parted)],
    ["here alone", `${number(told.own_entries)} entries, of ${number(told.files)} files and directories, with the content of ${number(told.contents)}`],
    ["they become", told.own_entries ? (told.branch ? `branch ${told.branch}` : "a branch, and are undone here") : "nothing is lost"],
  ];
}

function rejoinSteps(job) {
  if (job.state === "done") return h("div", { class: "card" }, h("h2", {}, "Then"), command(`fusejournal mount ${job.volume}`));
  return h("div", { class: "card" }, h("h2", {}, "It has to be unmounted meanwhile"), command(`fusejournal umount ${job.volume}`), command(job.command), command(`fusejournal mount ${job.volume}`));
}

function pruneOf(job) {
  const { journal, versions } = job.prune;
  const going = versions.filter((one) => !one.kept_as.length);
  return h("div", { class: "card" }, h("h2", {}, job.state === "done" ? "What went" : "What would go, and what stays"),
    job.remarks?.map((words) => h("p", { class: "soft" }, words)), journal.held_by.map((words) => h("p", { class: "note warning" }, `the journal is held back: ${words}`)),
    facts([
      ["of the journal", journal.segments ? `${number(journal.segments)} segments with ${size(journal.bytes)}, up to entry ${number(journal.up_to_seq)}` : "nothing"],
      ["versions", `${number(going.length)} of ${number(versions.length)}`],
      ["freed in the store", size(job.prune.freed_bytes)],
      ["no longer to be had", job.prune.no_longer_restorable.length ? job.prune.no_longer_restorable.map((one) => `entry ${number(one.seq)}`).join(", ") : "no moment that can be had now"],
    ]),
    versions.length ? h("div", { class: "scroll" }, h("table", { class: "stack" },
      h("thead", {}, h("tr", {}, ["Version", "Verdict"].map((words) => h("th", { scope: "col" }, words)))),
      h("tbody", {}, [...versions].reverse().map((one) => h("tr", { class: "rows" }, h("td", {}, one.name ? name(one.name) : `entry ${number(one.seq)}`),
        h("td", {}, one.kept_as.length ? `stays: ${one.kept_as.join(", ")}` : pill("warning", "goes")))))) ) : null);
}

const ROWS_MAX = 1000;

function rest(shown, count) {
  const first = Math.min(ROWS_MAX, shown.length);
  return count > first ? h("p", { class: "soft" }, `The first ${number(first)} of ${number(count)} are shown; all are done.`) : null;
}

function changesOf(job) {
  return h("div", { class: "card" }, h("h2", {}, job.state === "done" ? "What it did" : "What it will do"),
    h("div", { class: "scroll" }, h("table", { class: "stack" },
      h("thead", {}, h("tr", {}, ["Change", "Path"].map((words) => h("th", { scope: "col" }, words)), h("th", { scope: "col", class: "number" }, "Writes"))),
      h("tbody", {}, job.changes.slice(0, ROWS_MAX).map((one) => h("tr", { class: "rows" }, h("td", {}, one.action),
        h("td", { class: "wide" }, one.old_path !== null ? [path(one.old_path), " → "] : null, path(one.path), one.shared.length ? [h("span", { class: "soft" }, " the same file as "), one.shared.map((other) => [path(other), " "])] : null),
        h("td", { class: "number" }, one.bytes ? size(one.bytes) : "")))))),
    rest(job.changes, job.change_count));
}

function conflictsOf(job) {
  return h("div", { class: "card" }, h("h2", {}, `${number(job.conflict_count)} later changes are in the way`),
    h("ul", {}, job.conflicts.slice(0, 100).map((one) => h("li", {}, `entry ${number(one.seq)}: ${one.reason ?? ""}`, one.needs ? ` (needs ${number(one.needs)})` : ""))),
    job.conflict_count > 100 ? h("p", { class: "soft" }, "The first 100 are shown.") : null,
    h("p", { class: "soft" }, "Choose these, too, or plan again with another choice of what to do where changes are in the way."));
}

function actionsOf(job) {
  return h("div", { class: "card" }, h("h2", {}, job.state === "planned" || job.state === "planning" ? "What it will do" : "What it does, and each result"),
    h("div", { class: "scroll" }, h("table", { class: "stack" },
      h("thead", {}, h("tr", {}, ["Change", "Path", "Takes back", "Result"].map((words) => h("th", { scope: "col" }, words)))),
      h("tbody", {}, job.actions.slice(0, ROWS_MAX).map((one) => h("tr", { class: "rows" },
        h("td", {}, one.what), h("td", { class: "wide" }, one.what === "rename" ? [path(one.path), " → ", path(one.new_path)] : path(one.new_path ?? one.path)),
        h("td", {}, `entry ${number(one.because_of)}`), h("td", {}, one.result ? pill(one.result === "done" ? "good" : "warning", one.result) : "")))))),
    rest(job.actions, job.action_count));
}
