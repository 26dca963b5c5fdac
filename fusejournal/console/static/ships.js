// A picture of who ships to whom: each primary with its peers, and the way between them.

import * as app from "./app.js";
import { h, number } from "./dom.js";

export function shippingOf(agents) {
  const nodes = agents.flatMap((agent) => agent.volumes.map((volume) => ({ agent, volume })));
  const primaries = nodes.filter(({ volume }) => volume.role === "primary" && volume.replication?.peers?.length);
  if (!primaries.length) return null;
  return h("section", { class: "card", "aria-label": "Who ships to whom" }, h("h2", {}, "Who ships to whom"),
    h("ul", { class: "plain ships" }, primaries.map((one) => h("li", {}, box(one), h("ul", { class: "plain" },
      one.volume.replication.peers.map((peer) => h("li", {}, way(one, peer), boxOf(peer, one, nodes))))))));
}

function box({ agent, volume }) {
  return h("a", { class: "node", href: app.link(["v", agent.name, volume.name, "roles"]) }, h("strong", {}, volume.name), h("span", { class: "small" }, ` on ${agent.name}`));
}

// A peer is called as the primary calls it; where its server is paired, too, it is shown as that.
function boxOf(peer, primary, nodes) {
  const mirrors = nodes.filter(({ volume }) => volume.role === "mirror" && volume.uuid === primary.volume.uuid);
  const named = mirrors.filter(({ volume }) => volume.name === peer.name || volume.replication?.node === peer.name);
  const found = named.length === 1 ? named[0] : mirrors.length === 1 && primary.volume.replication.peers.length === 1 ? mirrors[0] : null;
  return found ? box(found) : h("span", { class: "node" }, h("strong", {}, peer.name));
}

function way({ agent }, peer) {
  const isLevel = !peer.lag_entries;
  const kind = agent.error !== null ? "soft" : peer.state === "streaming" ? (isLevel ? "good" : "warning") : "bad";
  const words = isLevel ? "level" : `${number(peer.lag_entries)} entries behind`;
  return h("span", { class: `way small ${kind}` }, `${peer.state}, ${words}`);
}
