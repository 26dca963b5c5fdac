// All servers and volumes at one look.

import { get, post, may, volumePath } from "./api.js";
import * as app from "./app.js";
import { h, pill, facts, number, size, ago, time, say, failure, command } from "./dom.js";

export async function overviewView(place) {
  const draw = () => {
    if (app.overview) place.replaceChildren(...describe(app.overview));
  };
  app.live.addEventListener("change", draw, { signal: place.signal });
  if (app.overview) draw();
  else place.replaceChildren(...describe(await get("/api/overview", {}, place.signal)));
}

function describe(overview) {
  const { agents, alerts } = overview;
  const parts = [h("h1", {}, "Overview")];
  if (!agents.length) {
    parts.push(h("div", { class: "card empty" }, h("p", {}, "No server is paired yet."),
      h("p", {}, "On each server run the agent, then ask it for a code, and use it on this machine:"),
      command("fusejournal agent pair"), command("fusejournal console pair NAME=ADDR:PORT CODE")));
    return parts;
  }
  parts.push(...alertsOf(alerts, agents));
  for (const agent of agents) parts.push(agentOf(agent));
  parts.push(command("fusejournal status"));
  return parts;
}

function alertsOf(alerts, agents) {
  const volumes = agents.reduce((count, agent) => count + agent.volumes.length, 0);
  if (!alerts.length) {
    return [h("p", { class: "note good" }, `All is well: ${volumes} ${volumes === 1 ? "volume" : "volumes"} on ${agents.length} ${agents.length === 1 ? "server" : "servers"}.`)];
  }
  return alerts.map((alert) => h("div", { class: `note ${alert.acknowledged ? "warning" : alert.severity}` },
    h("div", { class: "row" },
      h("div", {}, h("strong", {}, alert.volume ? `${alert.volume} on ${alert.agent}: ` : `${alert.agent}: `), alert.words,
        alert.advice ? h("div", { class: "small" }, "What to do: ", alert.advice) : null,
        h("div", { class: "small soft" }, `seen first ${ago(alert.since_ns)}`,
          alert.acknowledged ? `, acknowledged by ${alert.acknowledged.user}` : "")),
      may("operator") && !alert.acknowledged
        ? h("button", { type: "button", onclick: () => acknowledge(alert.key) }, "Acknowledge") : null)));
}

async function acknowledge(key) {
  try {
    await post("/api/alerts", { key });
    say("Acknowledged");
  } catch (error) {
    say(error.message);
  }
}

function agentOf(agent) {
  const away = agent.error !== null;
  return h("section", { "aria-label": agent.name },
    h("div", { class: "head" }, h("h2", {}, agent.name, agent.node && agent.node !== agent.name ? h("span", { class: "soft" }, ` (${agent.node})`) : null),
      away ? h("span", { class: "soft small" }, agent.seen_ns ? `as it was ${ago(agent.seen_ns)}` : "never seen") : null),
    agent.volumes.length
      ? h("div", { class: "cards" }, agent.volumes.map((volume) => volumeOf(agent, volume, away)))
      : h("p", { class: "soft" }, away ? "" : "This server has no volume."));
}

function health(volume, away) {
  if (away) return pill("warning", "not reached");
  if (volume.problems.some((one) => one.severity === "bad")) return pill("bad", volume.state);
  if (volume.problems.length) return pill("warning", `${volume.state}, look at it`);
  return pill("good", `${volume.state}, all is well`);
}

function volumeOf(agent, volume, away) {
  const to = (view) => app.link(["v", agent.name, volume.name, view]);
  const { covered, version, replication } = volume;
  return h("article", { class: "card" },
    h("div", { class: "head" }, h("h3", {}, h("a", { href: to("timeline") }, volume.name)), health(volume, away)),
    volume.problems.map((one) => h("p", { class: `note ${one.severity} small` }, one.words)),
    facts([
      ["role", volume.role ? `${volume.role}, epoch ${volume.epoch ?? "–"}` : null],
      ["serves", volume.mountpoint ? `${volume.mountpoint}${volume.exported ? ", exported by NFS" : ""}` : null],
      ["head", volume.head_seq === undefined ? null : `entry ${number(volume.head_seq)}${volume.entries_per_second ? `, ${number(volume.entries_per_second)} a second` : ""}`],
      ["covered", covered ? h("span", {}, "every moment since ", time(covered.first_time_ns), ` (entry ${number(covered.first_seq)})`) : null],
      ["space", volume.disk_free_bytes === undefined ? null : `${size(volume.disk_free_bytes)} left, the journal has ${size(volume.journal_bytes)}`],
      ["version", version === undefined || version === null ? "none kept" : version.error ?? (version.count ? h("span", {}, version.name || `of entry ${number(version.seq)}`, ", made ", time(version.made_ns)) : "none yet")],
      ...peersOf(agent, volume, replication),
    ]),
    h("div", { class: "row" },
      h("a", { class: "button", href: to("timeline") }, "Timeline"),
      h("a", { class: "button", href: to("browse") }, "Browse")));
}

function peersOf(agent, volume, replication) {
  if (!replication) return [];
  const found = replication.peers.map((peer) => [`→ ${peer.name}`, h("span", {}, `${peer.state}, `,
    peer.lag_entries ? `behind by ${number(peer.lag_entries)} entries, ${peer.lag_seconds.toFixed(1)} s` : "level",
    may("admin") ? [" ", pauseButton(agent, volume, peer)] : null)]);
  if (replication.mirror) {
    const mirror = replication.mirror;
    found.unshift([`← ${mirror.primary ?? "no primary yet"}`, `${mirror.state}, ${mirror.lag_entries ? `behind by ${number(mirror.lag_entries)} entries, ${mirror.lag_seconds.toFixed(1)} s` : "level"}`]);
  }
  return found;
}

function pauseButton(agent, volume, peer) {
  const isPaused = peer.state === "paused";
  const way = isPaused ? "resume" : "pause";
  const click = async () => {
    try {
      await post(`${volumePath(agent.name, volume.name)}/peers/${encodeURIComponent(peer.name)}/${way}`);
      say(isPaused ? `Shipping to ${peer.name} again` : `Nothing is shipped to ${peer.name} now`);
    } catch (error) {
      say(error.message);
    }
  };
  return h("button", { type: "button", class: "plain", onclick: click, title: `fusejournal peer ${way} ${volume.name} ${peer.name}` }, isPaused ? "Resume" : "Pause");
}
