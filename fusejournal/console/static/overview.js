// All servers and volumes at one look.

import { get, post, may } from "./api.js";
import * as app from "./app.js";
import { shippingOf } from "./ships.js";
import { pauseButton } from "./peers.js";
import { h, pill, facts, number, size, ago, time, clock, plain, refresh, say, command, asked, otherWays } from "./dom.js";

export async function overviewView(place) {
  const draw = () => {
    if (app.overview) refresh(place, ...describe(app.overview));
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
  parts.push(h("div", { class: "servers" }, agents.map(apart)));
  parts.push(picture(agents) ?? "");
  parts.push(channelsOf(overview.channels), command("fusejournal status"));
  return parts;
}

function alertsOf(alerts, agents) {
  const volumes = agents.reduce((count, agent) => count + agent.volumes.length, 0);
  if (!alerts.length) {
    return [h("p", { class: "note good" }, `All is well: ${volumes} ${volumes === 1 ? "volume" : "volumes"} on ${agents.length} ${agents.length === 1 ? "server" : "servers"}.`)];
  }
  return alerts.map((alert) => h("div", { "data-key": alert.key, class: `note ${alert.acknowledged || alert.silenced ? "warning" : alert.severity}` },
    h("div", { class: "row" },
      h("div", {}, h("strong", {}, alert.volume ? [h("a", { href: app.link(["v", alert.agent, alert.volume, "timeline"]) }, `${alert.volume} on ${alert.agent}`), ": "] : `${alert.agent}: `), plain(alert.words),
        massLink(alert),
        alert.advice ? h("div", { class: "small" }, "What to do: ", plain(alert.advice)) : null,
        h("div", { class: "small soft" }, `seen first ${ago(alert.since_ns)}`,
          alert.acknowledged ? `, acknowledged by ${alert.acknowledged.user}` : "",
          alert.silenced ? `, silenced by ${alert.silenced.user} until ${clock(alert.silenced.until_ns)}` : ""),
        may("operator") ? otherWays(alertActions(alert).map(([words, body]) => [words, asked("/api/alerts", body)])) : null),
      may("operator") ? h("div", { class: "row" }, alertButtons(alert)) : null)));
}

// Where a user changed very many files: the entries that did it, from where they can be taken back.
const DONE = { "unlink,rmdir": "removed", rename: "renamed", "write,truncate": "rewritten" };

function massLink(alert) {
  if (!alert.entries) return null;
  const { uid, op, since } = alert.entries;
  return h("div", {}, h("a", { href: app.link(["v", alert.agent, alert.volume, "timeline"], { uid, op, since }) }, `See what was ${DONE[op] ?? "done"}`));
}

// What can be done about an alert: words, what is asked of the API, and what is said then.
function alertActions({ key, acknowledged, silenced }) {
  return [acknowledged ? null : ["Acknowledge", { key, action: "acknowledge" }, "Acknowledged"],
    silenced ? ["Tell it again", { key, action: "unsilence" }, "It is told again"] : ["Silence for a day", { key, action: "silence", hours: 24 }, "Nobody is told for a day"]].filter(Boolean);
}

function alertButtons(alert) {
  return alertActions(alert).map(([words, body, said]) => h("button", { type: "button", onclick: () => act(body, said) }, words));
}

async function act(body, said) {
  try {
    await post("/api/alerts", body);
    say(said);
  } catch (error) {
    say(error.message);
  }
}

// Where alerts are told, besides on this page.
function channelsOf(channels) {
  if (!channels?.length) return h("p", { class: "soft small" }, "Alerts are shown here alone: the console's file alerts.toml names a webhook, a mail or a command.");
  const attempt = async (name) => {
    try {
      await post("/api/channels", { name });
      say(`${name}: delivered`);
    } catch (error) {
      say(error.message);
    }
  };
  return h("section", { class: "card", "aria-label": "Alerts are told by" }, h("h2", {}, "Alerts are told by"), h("ul", { class: "plain" }, channels.map((one) => h("li", { "data-key": one.name, class: "row" },
    h("span", { class: "grow" }, one.name, " ", one.error ? h("span", { class: "refused" }, one.error) : h("span", { class: "soft" }, one.delivered_ns ? `delivered ${ago(one.delivered_ns)}` : "nothing delivered yet")),
    may("admin") ? h("button", { type: "button", "aria-label": `Try ${one.name}`, onclick: () => attempt(one.name) }, "Try it") : null))),
  may("admin") ? otherWays(channels.map(({ name }) => [`Try ${name}`, asked("/api/channels", { name })])) : null);
}

function picture(agents) {
  try {
    return shippingOf(agents);
  } catch {
    return null;
  }
}

// An agent of another version may tell what this page does not know how to show: the others are shown.
function apart(agent) {
  try {
    return agentOf(agent);
  } catch (error) {
    return h("section", { "aria-label": agent.name }, h("h2", {}, agent.name), h("p", { class: "note bad" }, `What it tells cannot be shown: ${error.message}`));
  }
}

function agentOf(agent) {
  const away = agent.error !== null;
  return h("section", { "data-key": agent.name, "aria-label": agent.name, class: agent.volumes.length > 1 ? "many" : null },
    h("div", { class: "head" }, h("h2", {}, agent.name, agent.node && agent.node !== agent.name ? h("span", { class: "soft" }, ` (${agent.node})`) : null),
      away ? h("span", { class: "soft small" }, agent.seen_ns ? `as it was ${ago(agent.seen_ns)}` : "never seen") : null),
    agent.volumes.length
      ? h("div", { class: "cards" }, agent.volumes.map((volume) => volumeOf(agent, volume, away)))
      : h("p", { class: "soft" }, away ? "" : "This server has no volume."));
}

function health(volume, away) {
  if (away) return pill("warning", "not reached");
  if (volume.problems.some((one) => one.severity === "bad")) return pill("bad", `${volume.state}, at risk`);
  if (volume.problems.length) return pill("warning", `${volume.state}, look at it`);
  // What an admin wanted is no fault, and yet not to be forgotten.
  const paused = (volume.replication?.peers ?? []).filter((peer) => peer.state === "paused").map((peer) => peer.name);
  if (paused.length) return pill("", `${volume.state}, ${paused.join(", ")} paused`);
  return pill("good", `${volume.state}, all is well`);
}

// What a store that does not answer told last is shown beside that, with when.
function versionOf(version) {
  const { error, count, seen_ns: seen } = version;
  if (error === undefined && count === undefined) return "its store was asked";
  const newest = count ? [version.name || `of entry ${number(version.seq)}`, ", made ", time(version.made_ns)] : ["none yet"];
  if (error === undefined) return h("span", {}, newest);
  return h("span", {}, error, seen ? [". Before, ", time(seen), ": ", newest] : null);
}

function volumeOf(agent, volume, away) {
  const to = (view) => app.link(["v", agent.name, volume.name, view]);
  const { covered, version, replication } = volume;
  return h("article", { "data-key": volume.name, class: "card" },
    h("div", { class: "head" }, h("h3", {}, h("a", { href: to("timeline") }, volume.name)), health(volume, away)),
    volume.problems.map((one) => h("p", { class: `note ${one.severity} small` }, one.words)),
    facts([
      ["role", volume.role ? `${volume.role}, epoch ${volume.epoch ?? "–"}` : null],
      ["serves", volume.mountpoint ? `${volume.mountpoint}${exportOf(volume)}` : null],
      ["head", volume.head_seq === undefined ? null : `entry ${number(volume.head_seq)}${volume.entries_per_second ? `, ${number(volume.entries_per_second)} a second` : ""}`],
      ["covered", covered ? h("span", {}, "every moment since ", time(covered.first_time_ns), ` (entry ${number(covered.first_seq)})`) : null],
      ["space", volume.disk_free_bytes === undefined ? null : `${size(volume.disk_free_bytes)} left, the journal has ${size(volume.journal_bytes)}${forecast(volume)}`],
      ["version", version === undefined || version === null ? "none kept" : versionOf(version)],
      ["scrub", scrubOf(volume.scrub)],
      ...peersOf(agent, volume, replication),
    ]),
    h("div", { class: "row" },
      h("a", { class: "button", href: to("timeline") }, "Timeline"),
      h("a", { class: "button", href: to("browse") }, "Browse")));
}

// At the pace of all that the journal covers. An hour says too little, ten years say enough.
function forecast({ covered, journal_bytes: bytes, disk_free_bytes: free }) {
  const seconds = covered ? Date.now() / 1e3 - covered.first_time_ns / 1e9 : 0;
  if (seconds < 3600 || !bytes) return "";
  const days = free / (bytes / seconds) / 86400;
  return days > 3650 ? "; enough for years at its pace so far" : `; enough for ${days < 2 ? `${Math.floor(days * 24)} hours` : `${number(Math.floor(days))} days`} at its pace so far`;
}

function scrubOf(scrub) {
  if (!scrub) return "none yet";
  if (!scrub.finished) return h("span", {}, "under way since ", time(scrub.started * 1e9));
  const found = scrub.faults.length ? h("span", { class: "refused" }, `, ${number(scrub.faults.length)} ${scrub.faults.length === 1 ? "fault" : "faults"} left`) : ", no fault";
  return h("span", {}, time(scrub.finished * 1e9), found, scrub.repaired ? `, ${number(scrub.repaired)} put right` : "");
}

function exportOf(volume) {
  if (!volume.exported) return "";
  return volume.export_lacks ? `, exported in a file only: ${volume.export_lacks}` : ", exported by NFS";
}

function peersOf(agent, volume, replication) {
  if (!replication) return [];
  const found = replication.peers.map((peer) => [`→ ${peer.name}`, h("span", {}, `${peer.state}, `,
    peer.lag_entries ? `behind by ${number(peer.lag_entries)} entries, ${peer.lag_seconds.toFixed(1)} s` : "level",
    may("admin") ? [" ", pauseButton({ agent: agent.name, volume: volume.name }, peer, "plain")] : null)]);
  if (replication.mirror) {
    const mirror = replication.mirror;
    found.unshift([`← ${mirror.primary ?? "no primary yet"}`, `${mirror.state}, ${mirror.lag_entries ? `behind by ${number(mirror.lag_entries)} entries, ${mirror.lag_seconds.toFixed(1)} s` : "level"}`]);
  }
  return found;
}
