// Recovery: the jobs of all agents, and one of them with its plan, its progress and its results.

import { get, post, may, encode } from "./api.js";
import * as app from "./app.js";
import { h, path, pill, number, time, command, failure, say, facts } from "./dom.js";

const KINDS = { done: "good", planned: "warning", stopped: "warning", failed: "bad" };

function stateOf(job) {
  return pill(KINDS[job.state] ?? "", job.paused ? "paused" : job.state);
}

function titleOf(job) {
  if (job.kind === "restore") return ["Restore ", path(job.path), ` as of entry ${number(job.at)}`];
  const seqs = job.seqs?.length ? `entries ${job.seqs.join(", ")}` : "what a filter chose";
  return [`Take back ${seqs}`];
}

export async function jobsView(place) {
  const overview = app.overview ?? await get("/api/overview", {}, place.signal);
  const parts = [];
  for (const agent of overview.agents) {
    let jobs = [];
    let problem = null;
    try {
      jobs = (await get(`/api/agents/${encode(agent.name)}/jobs`, {}, place.signal)).jobs;
    } catch (error) {
      problem = failure(error);
    }
    parts.push(h("section", { class: "card", "aria-label": agent.name }, h("h2", {}, agent.name), problem,
      jobs.length ? h("div", { class: "scroll" }, h("table", { class: "stack" },
        h("thead", {}, h("tr", {}, ["Job", "Volume", "State", "By", "Asked for"].map((words) => h("th", { scope: "col" }, words)))),
        h("tbody", {}, jobs.map((job) => h("tr", {},
          h("td", { class: "wide" }, h("a", { href: app.link(["jobs", agent.name, job.id]) }, titleOf(job))),
          h("td", {}, job.volume ?? ""), h("td", {}, stateOf(job)), h("td", {}, job.user ?? ""), h("td", { class: "time" }, job.made_ns ? time(job.made_ns) : "")))))) : h("p", { class: "soft" }, problem ? "" : "No job yet: choose entries in a timeline, or a directory at a moment.")));
  }
  place.replaceChildren(h("h1", {}, "Recovery"), ...parts);
}

export async function jobView(place, agent, id) {
  const url = `/api/agents/${encode(agent)}/jobs/${encode(id)}`;
  const order = async (word) => {
    try {
      const job = await post(url, { order: word });
      if (job.state === "removed") { app.go(["jobs"]); return; }
      await draw();
    } catch (error) {
      say(error.message);
    }
  };
  let timer;
  let last = "";
  const draw = async () => {
    clearTimeout(timer);
    const job = await get(url, {}, place.signal);
    const text = JSON.stringify(job);
    if (text !== last) place.replaceChildren(...describe(job, agent, order));
    last = text;
    if (job.is_running && !place.signal.aborted) timer = setTimeout(() => draw().catch(() => {}), 700);
  };
  place.signal.addEventListener("abort", () => clearTimeout(timer));
  await draw();
}

function describe(job, agent, order) {
  return [
    h("p", {}, h("a", { href: app.link(["jobs"]) }, "All jobs")),
    h("div", { class: "head" }, h("h1", {}, titleOf(job)), stateOf(job)),
    h("div", { class: "card" },
      job.words ? h("p", { class: `note ${job.state === "failed" ? "bad" : job.state === "done" ? "good" : "warning"}` }, job.words) : null,
      job.is_running ? h("div", {}, h("progress", job.total ? { value: job.done, max: job.total, "aria-label": "Progress" } : { "aria-label": "Progress" }),
        h("p", { class: "soft small" }, `${job.state}${job.done ? `: ${number(job.done)}${job.total ? ` of ${number(job.total)}` : ""}` : "…"}`)) : null,
      facts([
        ["volume", h("a", { href: app.link(["v", agent, job.volume, "timeline"]) }, `${job.volume} on ${agent}`)],
        ["asked for", h("span", {}, time(job.made_ns), ` by ${job.user || "nobody known"}`)],
        ["to take back", job.chosen === undefined ? null : `${number(job.chosen)} entries${job.kept ? `; ${number(job.kept)} stay, because later changes rely on them` : ""}`],
        ["into", job.kind === "restore" ? h("code", {}, job.target) : null],
        ["restored", job.names === undefined ? null : `${number(job.names)} names`],
      ]),
      may("operator") ? h("div", { class: "row" }, buttons(job, order)) : null,
      command(job.command)),
    job.undo_command ? h("div", { class: "card" }, h("h2", {}, "The way back from this"), command(job.undo_command)) : null,
    job.conflict_count ? conflictsOf(job) : null,
    job.actions?.length ? actionsOf(job) : null,
  ].filter(Boolean);
}

function buttons(job, order) {
  const button = (word, words, kind) => h("button", { type: "button", class: kind, onclick: (event) => { event.target.disabled = true; order(word); } }, words);
  if (job.is_running) {
    return [job.paused ? button("resume", "Go on", "main") : button("pause", "Pause"), button("stop", "Stop", "danger")];
  }
  const found = [];
  if (job.state === "planned" && job.chosen && !job.conflict_count) found.push(button("do", `Do it: ${number(job.action_count)} changes`, "main"));
  if (job.state === "stopped" || (job.state === "failed" && job.kind === "restore")) found.push(button("do", "Go on", "main"));
  found.push(button("remove", "Remove this job from the list", ""));
  return found;
}

function conflictsOf(job) {
  return h("div", { class: "card" }, h("h2", {}, `${number(job.conflict_count)} later changes are in the way`),
    h("ul", {}, job.conflicts.slice(0, 100).map((one) => h("li", {}, `entry ${number(one.seq)}: ${one.reason ?? ""}`, one.needs ? ` (needs ${number(one.needs)})` : ""))),
    h("p", { class: "soft" }, "Choose these, too, or plan again with another choice of what to do where changes are in the way."));
}

function actionsOf(job) {
  return h("div", { class: "card" }, h("h2", {}, job.state === "planned" || job.state === "planning" ? "What it will do" : "What it does, and each result"),
    h("div", { class: "scroll" }, h("table", { class: "stack" },
      h("thead", {}, h("tr", {}, ["Change", "Path", "Takes back", "Result"].map((words) => h("th", { scope: "col" }, words)))),
      h("tbody", {}, job.actions.slice(0, 1000).map((one) => h("tr", { class: "rows" },
        h("td", {}, one.what), h("td", { class: "wide" }, one.what === "rename" ? [path(one.path), " → ", path(one.new_path)] : path(one.new_path ?? one.path)),
        h("td", {}, `entry ${number(one.because_of)}`), h("td", {}, one.result ? pill(one.result === "done" ? "good" : "warning", one.result) : "")))))),
    job.action_count > 1000 ? h("p", { class: "soft" }, `The first 1,000 of ${number(job.action_count)}.`) : null);
}
