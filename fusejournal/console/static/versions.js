// The versions of a volume: their list and store, the tree of one, what differs between two.

import { get, post, may, encode, query, volumePath, userNames } from "./api.js";
import * as app from "./app.js";
import { h, focusAgain, focusIn, user, path, name, plain, number, size, time, command, failure, pill, facts, say, spinner, field, quoted, otherWays } from "./dom.js";
import { confirmTyped } from "./dialogs.js";
import { heading } from "./volume.js";
import { begin } from "./timeline.js";
import { archiveLinks, changeTable } from "./browse.js";
import { fillCalendar } from "./calendar.js";

const HISTORIES = { lost: "of a history that lost", ahead: "ahead of the journal here", before: "before the journal here" };

export async function versionsView(place, agent, volume, params) {
  const base = volumePath(agent, volume);
  const view = { base, agent, volume, signal: place.signal };
  if (params.version) return versionTree(place, view, params);
  if (params.old) return versionChanges(place, view, params);
  let list = h("div", {});
  const draw = async () => {
    const found = await get(`${base}/versions`, {}, place.signal);
    const calendar = h("div", { class: "card" }, spinner("Working out what the policy does…"));
    const was = focusIn(list);
    list = listOf(found, view, () => draw().catch((error) => say(error.message)));
    place.replaceChildren(...heading(agent, volume, "versions"), storeOf(found, view), found.error ? "" : calendar, list);
    focusAgain(list, was);
    if (!found.error) await fillCalendar(calendar, view);
  };
  return draw();
}

function storeOf(found, view) {
  const { store } = found;
  const objects = store ? Object.entries(store.objects).map(([kind, count]) => `${number(count)} ${kind}`).join(", ") : null;
  return h("div", { class: "card" }, h("h2", {}, "Store"),
    found.error ? h("p", { class: "note warning" }, found.error) : null,
    facts([
      ["at", store ? h("code", {}, store.store) : null],
      ["encrypted", store ? (store.key_id ? `yes, with key ${store.key_id}` : "no") : null],
      ["objects", objects],
      ["journal", `entries ${number(found.first_seq)} to ${number(found.head_seq)}: any moment among them can be restored`],
    ]),
    store ? h("div", { class: "row end" }, may("operator") ? createForm(view) : null,
      may("admin") ? h("button", { type: "button", onclick: () => begin(view, { kind: "prune", volume: view.volume }) }, "See what the policy would let go") : null) : null);
}

function createForm(view) {
  const submit = (event) => {
    event.preventDefault();
    begin(view, { kind: "version-create", volume: view.volume, name: new FormData(event.target).get("name") });
  };
  return h("form", { class: "row end", onsubmit: submit }, field("Name of a new version", "name", { placeholder: "may be left empty" }), h("button", { class: "main" }, "Make a version now"));
}

function listOf(found, view, again) {
  const chosen = [];
  const compare = h("button", { type: "button", disabled: true, onclick: () => app.go(["v", view.agent, view.volume, "versions"], compared(chosen, found)) }, "Compare the two that are chosen");
  const choose = (key, on) => {
    if (on) chosen.push(key); else chosen.splice(chosen.indexOf(key), 1);
    compare.disabled = chosen.length !== 2;
  };
  const rows = [...found.versions].reverse();
  return h("div", { class: "card" },
    h("div", { class: "head" }, h("h2", {}, `${number(found.versions.length)} ${found.versions.length === 1 ? "version" : "versions"}`), rows.length > 1 ? compare : null),
    found.unreadable.map((one) => h("div", { class: "note bad" }, h("div", {}, one.error), may("admin") ? h("button", { type: "button", class: "danger", onclick: () => remove(view, { key: one.key, words: one.key }, again) }, "Delete it") : null)),
    rows.length ? h("div", { class: "scroll" }, h("table", { class: "stack" },
      h("thead", {}, h("tr", {}, ["Take", "Version", "As of", "Made"].map((words) => h("th", { scope: "col" }, words)),
        ["Files", "Content", "Added"].map((words) => h("th", { scope: "col", class: "number" }, words)), h("th", { scope: "col" }, "Actions"))),
      h("tbody", {}, rows.map((one) => versionRow(one, view, choose, again))))) : h("p", { class: "empty" }, "No version yet."),
    command(found.command), waysOf(view));
}

function waysOf(view) {
  const line = (word, rest) => `fusejournal version ${word} ${quoted(view.volume)} ${rest}`;
  return may("operator") ? otherWays([
    ["Make a version", line("create", "[NAME]")], ["Protect", line("protect", "VERSION")], ["Protect no longer", line("protect", "VERSION --off")],
    ["Verify", line("verify", "VERSION --data")], may("admin") ? ["Delete", line("delete", "VERSION")] : null]) : null;
}

function compared(chosen, found) {
  const [old, recent] = found.versions.filter((one) => chosen.includes(one.key));
  return { old: wantedOf(old), new: wantedOf(recent) };
}

// As a person names it to a command: by its seq, which among those of this history is one's alone.
const wantedOf = (one) => (one.history === "lost" ? one.key : String(one.seq));

const titleOf = (one) => one.name || `entry ${number(one.seq)}`;

function versionRow(one, view, choose, again) {
  const words = titleOf(one);
  return h("tr", { class: "rows" },
    h("td", {}, h("input", { type: "checkbox", "aria-label": `Choose ${words}`, onchange: (event) => choose(one.key, event.target.checked) })),
    h("td", { class: "wide" }, h("a", { href: app.link(["v", view.agent, view.volume, "versions"], { version: one.key }) }, one.name ? name(one.name) : words), " ",
      one.protected ? pill("good", "protected") : null, HISTORIES[one.history] ? [" ", pill("warning", HISTORIES[one.history])] : null),
    h("td", { class: "time", "data-label": "As of" }, time(one.time_ns), h("span", { class: "soft small" }, `, entry ${number(one.seq)}`)),
    h("td", { class: "time", "data-label": "Made" }, time(one.made_ns)),
    h("td", { class: "number", "data-label": "Files" }, number(one.file_count)), h("td", { class: "number", "data-label": "Content" }, size(one.content_bytes)), h("td", { class: "number", "data-label": "Added" }, size(one.added_bytes)),
    h("td", {}, h("div", { class: "row" }, may("operator") ? [
      h("button", { type: "button", class: "plain", "aria-label": `${one.protected ? "Protect no longer" : "Protect"} ${words}`, onclick: () => protect(view, one, again) }, one.protected ? "Protect no longer" : "Protect"),
      h("button", { type: "button", class: "plain", "aria-label": `Verify ${words}`, onclick: () => begin(view, { kind: "version-verify", volume: view.volume, version: wantedOf(one), data: true }) }, "Verify"),
    ] : null, may("admin") ? h("button", { type: "button", class: "plain", "aria-label": `Delete ${words}`, onclick: () => remove(view, { key: one.key, words: one.name || String(one.seq) }, again) }, "Delete") : null)));
}

async function protect(view, one, again) {
  try {
    const done = await post(`${view.base}/versions/${encode(one.key)}/protect`, { off: one.protected });
    say(done.protected ? "Protected from being deleted" : "No longer protected");
  } catch (error) {
    say(error.message);
  }
  again();
}

function remove(view, { key, words }, again) {
  confirmTyped({
    title: `Delete version ${words}`, wanted: words, button: "Delete it for ever",
    words: "It cannot be restored any more. What no other version has stays in the store until the next pruning.",
    command: `fusejournal version delete ${quoted(view.volume)} ${quoted(words)}`,
    act: async (typed) => {
      await post(`${view.base}/versions/${encode(key)}/delete`, { confirm: typed });
      say("Deleted");
      again();
    },
  });
}

// -- one version ------------------------------------------------------------------------------------

async function versionTree(place, view, params) {
  const url = `${view.base}/versions/${encode(params.version)}`;
  const wanted = params.path ?? "";
  const to = (below) => app.link(["v", view.agent, view.volume, "versions"], { version: params.version, path: below });
  const page = await get(`${url}/tree`, { path: wanted }, view.signal);
  const names = page.path ? page.path.split("/") : [];
  const restore = (kind) => begin(view, { kind, volume: view.volume, path: page.path, version: wantedOf(page.version) });
  const download = (below, words) => (may("operator") ? h("a", { href: `${url}/content${query({ path: below })}`, download: plain(words), "aria-label": `Download ${plain(words)}` }, "Download") : null);
  const body = h("tbody", {});
  const more = h("div", { class: "row" });
  const fill = (part) => {
    for (const one of part.names) {
      const below = page.path ? `${page.path}/${one.name}` : one.name;
      body.append(h("tr", { class: "rows" },
        h("td", { class: "wide" }, one.type === "directory" ? h("a", { href: to(below) }, name(one.name)) : name(one.name), one.target !== null ? [" → ", name(one.target)] : null),
        h("td", {}, one.type), h("td", { class: "number" }, one.type === "file" ? size(one.size) : ""), h("td", { class: "time" }, one.mtime_ns ? time(one.mtime_ns) : ""),
        h("td", {}, user(one.uid, userNames)), h("td", {}, one.type === "file" ? download(below, one.name) : null)));
    }
    const load = async () => {
      try { fill(await get(`${url}/tree`, { path: wanted, after: part.names.at(-1).name }, view.signal)); } catch (error) { more.replaceChildren(failure(error)); }
    };
    more.replaceChildren(...(part.more ? [h("button", { type: "button", onclick: load }, "More")] : []));
  };
  fill(page);
  place.replaceChildren(...heading(view.agent, view.volume, "versions"),
    h("p", {}, h("a", { href: app.link(["v", view.agent, view.volume, "versions"]) }, "All versions")),
    h("div", { class: "card" }, h("h2", {}, "Version ", name(titleOf(page.version)), " as of ", time(page.version.time_ns)),
      h("nav", { class: "crumbs", "aria-label": "Path" }, h("a", { href: to("") }, view.volume),
        names.map((one, at) => ["/", at === names.length - 1 ? h("strong", {}, name(one)) : h("a", { href: to(names.slice(0, at + 1).join("/")) }, name(one))])),
      may("operator") ? h("div", { class: "row" },
        page.is_directory ? archiveLinks(`${url}/archive`, { path: page.path }, page.file.name || view.volume) : null,
        h("button", { type: "button", onclick: () => restore("restore") }, "Plan to restore aside"),
        h("button", { type: "button", onclick: () => restore("in-place") }, "Plan to restore in place")) : null),
    page.is_directory ? h("div", { class: "card" }, h("div", { class: "scroll" }, h("table", { class: "stack" },
      h("thead", {}, h("tr", {}, ["Name", "Type"].map((words) => h("th", { scope: "col" }, words)), h("th", { scope: "col", class: "number" }, "Size"),
        ["Changed", "Owner", "Actions"].map((words) => h("th", { scope: "col" }, words)))), body)), more)
      : h("div", { class: "card" }, h("p", {}, `${page.file.type}, ${size(page.file.size)} `, download(page.path, page.file.name))),
    h("div", { class: "card" }, command(page.command)));
}

// -- two versions -----------------------------------------------------------------------------------

async function versionChanges(place, view, params) {
  const result = h("div", { class: "card" }, spinner("Comparing…"));
  place.replaceChildren(...heading(view.agent, view.volume, "versions"),
    h("p", {}, h("a", { href: app.link(["v", view.agent, view.volume, "versions"]) }, "All versions")), result);
  const found = await get(`${view.base}/version-difference`, { old: params.old, new: params.new, path: params.path }, view.signal);
  result.replaceChildren(h("h2", {}, `${number(found.count)} ${found.count === 1 ? "file differs" : "files differ"} between the two versions`),
    changeTable(found, (one) => path(one.old_path ?? one.new_path)), command(found.command));
}
