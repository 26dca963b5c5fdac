// What the views of one volume share: the tabs, and the words of operations.

import { link } from "./app.js";
import { h } from "./dom.js";

const VIEWS = [["timeline", "Timeline"], ["browse", "Browse"], ["changes", "Differences"], ["versions", "Versions"], ["roles", "Peers and roles"]];

export function heading(agent, volume, current) {
  return [
    h("h1", {}, volume, h("span", { class: "soft" }, ` on ${agent}`)),
    h("nav", { class: "tabs", "aria-label": "Views of the volume" }, VIEWS.map(([view, words]) =>
      h("a", { href: link(["v", agent, volume, view]), "aria-current": view === current ? "page" : null }, words))),
  ];
}

export const OPERATIONS = ["create", "mkdir", "symlink", "link", "unlink", "rmdir", "rename", "write", "truncate", "fallocate",
  "setattr", "setxattr", "removexattr", "import", "import_data", "import_link", "whiteout", "mark", "epoch", "clean"];

const GROUPS = {
  create: 1, mkdir: 1, symlink: 1, link: 1, import: 5, import_data: 5, import_link: 5,
  unlink: 2, rmdir: 2, rename: 3, whiteout: 3, write: 0, truncate: 0, fallocate: 0,
  setattr: 4, setxattr: 4, removexattr: 4,
};
export const GROUP_NAMES = ["written", "made", "removed", "moved", "attributes", "others"];
export const groupOf = (op) => GROUPS[op] ?? 5;

export function operation(op) {
  return h("span", { class: `op ${["", "made", "removed", "moved", "", ""][groupOf(op)]}` }, op);
}
