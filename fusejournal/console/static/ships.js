// A picture of who ships to whom: each node with its peers, those that ship on with theirs, and the
// way between them.

import * as app from "./app.js";
import { h, number } from "./dom.js";

export function shippingOf(agents) {
  const nodes = agents.flatMap((agent) => agent.volumes.map((volume) => ({ agent, volume })));
  const shipping = nodes.filter((node) => peersOf(node).length);
  const ways = new Map(shipping.map((node) => [node, peersOf(node).map((peer) => ({ peer, to: nodeOf(peer, node, nodes) }))]));
  const reached = new Set([...ways.values()].flat().map(({ to }) => to));
  // Primaries, and mirrors that ship on what comes from a server that is not paired here. (Two that
  // ship to each other, as after a handoff, have one that is shown first.)
  const first = [...shipping.filter(({ volume }) => volume.role === "primary"), ...shipping.filter((node) => !reached.has(node)), ...shipping];
  const shown = new Set();
  const rows = [];
  for (const node of first) if (!shown.has(node)) rows.push(h("li", {}, box(node), onward(node, ways, shown)));
  if (!rows.length) return null;
  return h("section", { class: "card", "aria-label": "Who ships to whom" }, h("h2", {}, "Who ships to whom"), h("ul", { class: "plain ships" }, rows));
}

const peersOf = ({ volume }) => volume.replication?.peers ?? [];

function onward(node, ways, shown) {
  if (shown.has(node) || !ways.has(node)) return null;
  shown.add(node);
  return h("ul", { class: "plain" }, ways.get(node).map(({ peer, to }) => h("li", {}, way(node, peer),
    to ? [box(to), onward(to, ways, shown)] : h("span", { class: "node" }, h("strong", {}, peer.name)))));
}

function box({ agent, volume }) {
  return h("a", { class: "node", href: app.link(["v", agent.name, volume.name, "roles"]) }, h("strong", {}, volume.name), h("span", { class: "small" }, ` on ${agent.name}`));
}

// A peer is called as the node that ships calls it; where its server is paired, too, it is found by
// that name, or as the one mirror that says whom it gets all from.
function nodeOf(peer, from, nodes) {
  const mirrors = nodes.filter((node) => node !== from && node.volume.role === "mirror" && node.volume.uuid === from.volume.uuid);
  const named = mirrors.filter(({ volume }) => volume.name === peer.name || volume.replication?.node === peer.name);
  if (named.length === 1) return named[0];
  if (peersOf(from).length > 1) return null;
  const source = from.volume.replication.node;
  const fed = mirrors.filter(({ volume }) => source && volume.replication?.mirror?.primary === source);
  return fed.length === 1 ? fed[0] : mirrors.length === 1 ? mirrors[0] : null;
}

function way({ agent }, peer) {
  const isLevel = !peer.lag_entries;
  const kind = agent.error !== null || peer.state === "paused" ? "soft" : peer.state === "streaming" ? (isLevel ? "good" : "warning") : "bad";
  const words = isLevel ? "level" : `${number(peer.lag_entries)} entries behind`;
  return h("span", { class: `way small ${kind}` }, `${peer.state}, ${words}`);
}
