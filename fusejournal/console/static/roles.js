// Who is primary of a volume: its nodes on all servers that the console knows, as they are now, what
// changes it, and how two of them become peers. The volume is one by its UUID, whatever its name is on each server.

import { get, poll, post, may, volumePath } from "./api.js";
import * as app from "./app.js";
import { h, number, command, failure, pill, facts, refresh, say } from "./dom.js";
import { heading } from "./volume.js";
import { begin } from "./timeline.js";
import { pairButtons, pauseButton } from "./peers.js";

export async function rolesView(place, agent, volume) {
  const overview = app.overview ?? await get("/api/overview", {}, place.signal);
  const result = h("div", {});
  place.replaceChildren(...heading(agent, volume, "roles"), result);
  let isBusy = false;
  const draw = async (told, ask = poll) => {
    if (isBusy) return;
    isBusy = true;
    try {
      const parts = await Promise.all(nodesOf(told, agent, volume).map((one) => standingOf(one, place.signal, ask)));
      refresh(result, ...describe(parts));
    } catch (error) {
      if (error.name !== "AbortError") refresh(result, failure(error));
    }
    isBusy = false;
  };
  app.live.addEventListener("change", () => draw(app.overview), { signal: place.signal });
  const timer = setInterval(() => draw(app.overview ?? overview), 2000);
  place.signal.addEventListener("abort", () => clearInterval(timer));
  await draw(overview, get);
}

function nodesOf(overview, agent, volume) {
  const here = overview.agents.find((one) => one.name === agent)?.volumes.find((one) => one.name === volume);
  const found = [];
  for (const server of overview.agents) {
    for (const one of server.volumes) {
      const isSame = here?.uuid ? one.uuid === here.uuid : server.name === agent && one.name === volume;
      if (isSame) found.push({ agent: server.name, volume: one.name, away: server.error });
    }
  }
  return found.length ? found : [{ agent, volume, away: null }];
}

async function standingOf(node, signal, ask) {
  if (node.away !== null) return { ...node, error: `cannot be reached: ${node.away}` };
  try {
    return { ...node, found: await ask(`${volumePath(node.agent, node.volume)}/standing`, {}, signal) };
  } catch (error) {
    if (error.name === "AbortError") throw error;
    return { ...node, error: error.message };
  }
}

function describe(parts) {
  const primaries = parts.filter((one) => one.found?.role === "primary");
  const live = primaries.filter((one) => one.found.state === "running");
  const words = live.length === 1
    ? `${live[0].volume} on ${live[0].agent} is the primary, in reign ${live[0].found.reign}.`
    : live.length ? `${live.length} nodes say that they are primary: ${live.map((one) => one.agent).join(", ")}. The one with the higher reign is; the other is fenced, or will be once they meet.`
      : "No node that the console reaches serves as primary now.";
  return [h("p", { class: `note ${live.length === 1 ? "good" : "bad"}`, role: "status" }, words),
    h("div", { class: "cards" }, parts.map(nodeOf)),
    h("p", { class: "soft small" }, "A node is one server's copy of the volume. Servers without an agent that is paired are not shown here, but for what their peers tell.")];
}

function nodeOf(node) {
  const { found } = node;
  const key = `${node.agent} ${node.volume}`;
  const view = { agent: node.agent, volume: node.volume };
  const title = h("h2", {}, h("a", { href: app.link(["v", node.agent, node.volume, "roles"]) }, `${node.volume} on ${node.agent}`));
  if (!found) return h("article", { "data-key": key, class: "card" }, title, h("p", { class: "note warning" }, node.error));
  const told = found.replication;
  const isPrimary = found.role === "primary";
  const isFenced = found.troubles?.some((one) => one.kind === "fenced") ?? found.degraded.length > 0; // an earlier agent has no kinds
  const isRunning = found.state === "running" || told !== null;
  return h("article", { "data-key": key, class: "card" }, h("div", { class: "head" }, title, pill(found.degraded.length ? "bad" : !isRunning ? "warning" : isPrimary ? "good" : "", `${found.role}, ${found.state}`)),
    found.degraded.map((line) => h("p", { class: "note bad small" }, line)),
    found.parting ? h("p", { class: "note warning small" }, `Its journal parts from that of ${found.parting.peer}, which goes by reign ${found.parting.reign}: a rejoin brings it level.`) : null,
    facts([
      ["reign", found.reign], ["fence", found.fence], ["position", found.position ? h("code", {}, found.position) : null],
      ...(told?.mirror ? [[`← ${told.mirror.primary ?? "no primary yet"}`, `${told.mirror.state}, ${lag(told.mirror)}`]] : []),
      ...(told?.peers ?? []).map((peer) => [`→ ${peer.name}`, h("span", {}, `${peer.state}, ${lag(peer)}; has everything up to entry ${number(peer.acked_seq)} on its disk`, peer.last_error && peer.lag_entries ? h("span", { class: "refused" }, ` ${peer.last_error}`) : null, may("admin") ? [" ", pauseButton(view, peer, "plain")] : null)]),
    ]),
    may("admin") && isRunning ? h("div", { class: "row pairing" }, pairButtons(view, found)) : null,
    may("admin") ? h("div", { class: "row" }, isRunning && isPrimary ? primaryButtons(view, told) : null, isRunning && !isPrimary ? mirrorButtons(view) : null,
      !isRunning || found.parting || (isPrimary && isFenced) ? h("button", { type: "button", onclick: () => begin(view, { kind: "rejoin", volume: node.volume }) }, "Plan a rejoin") : null) : null,
    command(found.command));
}

function lag(one) {
  return one.lag_entries ? `behind by ${number(one.lag_entries)} entries, ${one.lag_seconds.toFixed(1)} s` : "level";
}

function primaryButtons(view, told) {
  const plan = (fields) => begin(view, { volume: view.volume, ...fields });
  return [...(told?.peers ?? []).map((peer) => h("button", { type: "button", onclick: () => plan({ kind: "handoff", peer: peer.name }) }, `Hand over to ${peer.name}…`)),
    h("button", { type: "button", class: "danger", onclick: () => plan({ kind: "demote" }) }, "Demote…")];
}

function mirrorButtons(view) {
  return [h("button", { type: "button", class: "danger", onclick: () => begin(view, { volume: view.volume, kind: "promote" }) }, "Promote…")];
}
