// The tree at any moment, a file's life, and what differs between two moments.

import { get, may, query, volumePath, userNames } from "./api.js";
import * as app from "./app.js";
import { h, focusAgain, focusIn, user, path, name, plain, number, size, time, clock, command, failure, spinner } from "./dom.js";
import { openDialog } from "./dialogs.js";
import { heading, operation } from "./volume.js";
import { begin, showEntry } from "./timeline.js";

// -- the tree ---------------------------------------------------------------------------------------

export async function browseView(place, agent, volume, params) {
  const base = volumePath(agent, volume);
  const view = { base, agent, volume, signal: place.signal };
  const wanted = { path: params.path ?? "", at: params.at, time: params.time };
  const tree = await get(`${base}/tree`, wanted, place.signal);
  const slider = h("div", {}, spinner("Looking for moments…"));
  place.replaceChildren(...heading(agent, volume, "browse"),
    h("div", { class: "card" }, crumbs(view, tree, params.at), momentForm(view, tree), slider),
    tree.is_directory ? directory(view, tree) : file(view, tree),
    h("div", { class: "card" }, h("p", { class: "small soft" }, "The same on the command line:"), command(tree.command)));
  drawSlider(slider, view, tree).catch((error) => { if (error.name !== "AbortError") slider.replaceChildren(failure(error)); });
}

const to = (view, params) => app.link(["v", view.agent, view.volume, "browse"], params);

function crumbs(view, tree, at) {
  const names = tree.path ? tree.path.split("/") : [];
  return h("nav", { class: "crumbs", "aria-label": "Path" }, h("a", { href: to(view, { at }) }, view.volume),
    names.map((one, index) => ["/", index === names.length - 1
      ? h("strong", {}, name(one))
      : h("a", { href: to(view, { at, path: names.slice(0, index + 1).join("/") }) }, name(one))]));
}

function momentForm(view, tree) {
  const isNow = tree.at === tree.head_seq;
  const submit = (event) => {
    event.preventDefault();
    app.go(["v", view.agent, view.volume, "browse"], { path: tree.path, time: new FormData(event.target).get("time") });
  };
  return h("div", { class: "row" },
    h("p", { class: "grow" }, h("strong", {}, isNow ? "Now" : clock(tree.time_ns)), h("span", { class: "soft" }, `, after entry ${number(tree.at)} of ${number(tree.head_seq)}`)),
    h("form", { class: "row end", onsubmit: submit }, h("label", {}, "At a time", h("input", { name: "time", placeholder: "yesterday 14:00", required: true })), h("button", {}, "Go")),
    isNow ? null : h("a", { class: "button", href: to(view, { path: tree.path }) }, "Now"),
    isNow ? null : h("a", { class: "button", href: app.link(["v", view.agent, view.volume, "changes"], { from: tree.at, path: tree.path }) }, "What changed since"));
}

// The slider snaps to the entries that changed what is shown; the path stays.
async function drawSlider(place, view, tree) {
  const { seqs, count } = await get(`${view.base}/moments`, { path: tree.path, at: tree.at }, view.signal);
  const stops = [...new Set([tree.first_seq, ...seqs, tree.head_seq])].filter((seq) => seq >= tree.first_seq).sort((one, other) => one - other);
  let at = stops.findLastIndex((seq) => seq <= tree.at);
  if (at < 0) at = 0;
  const label = h("output", { class: "small soft" }, `${number(count)} changes of what is shown`);
  const slider = h("input", { type: "range", min: 0, max: stops.length - 1, step: 1, value: at, "aria-label": "Moment", "aria-valuetext": `entry ${stops[at]}` });
  slider.value = at;
  const move = (index) => app.go(["v", view.agent, view.volume, "browse"], { path: tree.path, at: stops[index] === tree.head_seq ? "" : stops[index] });
  slider.addEventListener("input", () => { label.textContent = `entry ${number(stops[slider.value])}`; slider.setAttribute("aria-valuetext", `entry ${stops[slider.value]}`); });
  slider.addEventListener("change", () => move(Number(slider.value)));
  place.replaceChildren(slider, h("div", { class: "row" },
    h("button", { type: "button", disabled: at === 0, onclick: () => move(at - 1) }, "◀ Earlier"),
    h("button", { type: "button", disabled: at === stops.length - 1, onclick: () => move(at + 1) }, "Later ▶"), label));
}

function directory(view, tree) {
  const at = tree.at === tree.head_seq ? "" : tree.at;
  const body = h("tbody", {});
  const more = h("div", { class: "row" });
  const fill = (page) => {
    for (const one of page.names) body.append(nameRow(view, tree, one, at));
    const last = page.names.at(-1)?.name;
    const load = async () => {
      const was = focusIn(more);
      try { fill(await get(`${view.base}/tree`, { path: tree.path, at: tree.at, after: last }, view.signal)); } catch (error) { more.replaceChildren(failure(error)); }
      focusAgain(more, was);
    };
    more.replaceChildren(...(page.more ? [h("button", { type: "button", onclick: load }, "More")] : []));
  };
  fill(tree);
  return h("div", { class: "card" },
    h("div", { class: "head" }, h("h2", {}, `${number(tree.count)} ${tree.count === 1 ? "name" : "names"}`),
      restoreButtons(view, tree, " this directory")),
    tree.count ? h("div", { class: "scroll" }, h("table", { class: "stack" },
      h("thead", {}, h("tr", {}, ["Name", "Type"].map((words) => h("th", { scope: "col" }, words)), h("th", { scope: "col", class: "number" }, "Size"),
        ["Changed", "Owner", ""].map((words) => h("th", { scope: "col" }, words || "Actions")))), body)) : h("p", { class: "empty" }, "Nothing was here at this moment."),
    more);
}

function nameRow(view, tree, one, at) {
  const full = tree.path ? `${tree.path}/${one.name}` : one.name;
  return h("tr", { class: "rows" },
    h("td", { class: "wide" }, h("a", { href: to(view, { path: full, at }) }, name(one.name)), one.target !== null ? [" → ", name(one.target)] : null),
    h("td", {}, one.type), h("td", { class: "number" }, one.type === "file" ? size(one.size) : ""),
    h("td", { class: "time" }, time(one.mtime_ns)), h("td", {}, user(one.uid, userNames)),
    h("td", {}, h("div", { class: "row" }, h("a", { href: app.link(["v", view.agent, view.volume, "life"], { path: full }), "aria-label": `History of ${plain(one.name)}` }, "History"),
      one.type === "file" ? download(view, full, tree.at, one.name) : null)));
}

function download(view, full, at, last) {
  if (!may("operator")) return null;
  return h("a", { href: `${view.base}/content${query({ path: full, at })}`, download: plain(last), "aria-label": `Download ${plain(last)} as it was` }, "Download");
}

function file(view, tree) {
  const one = tree.file;
  return h("div", { class: "card" }, h("h2", {}, name(one.name)),
    h("p", {}, `${one.type}, ${size(one.size)}, `, user(one.uid, userNames), ", changed ", time(one.mtime_ns)),
    h("div", { class: "row" },
      h("a", { class: "button", href: app.link(["v", view.agent, view.volume, "life"], { path: tree.path }) }, "History"),
      may("operator") && one.type === "file" ? h("a", { class: "button", href: `${view.base}/content${query({ path: tree.path, at: tree.at })}`, download: plain(one.name) }, "Download as it was") : null,
      restoreButtons(view, tree, "")));
}

function restoreButtons(view, tree, what) {
  if (!may("operator")) return null;
  const fields = { volume: view.volume, path: tree.path, at: tree.at };
  return h("div", { class: "row" },
    tree.is_directory ? archiveLinks(`${view.base}/archive`, { path: tree.path, at: tree.at }, tree.file.name || view.volume) : null,
    h("button", { type: "button", onclick: () => begin(view, { kind: "restore", ...fields }) }, `Plan to restore${what} aside`),
    tree.at === tree.head_seq ? null : h("button", { type: "button", onclick: () => begin(view, { kind: "in-place", ...fields }) }, `Plan to restore${what} in place`));
}

// A directory as an archive: tar keeps owners, zip opens everywhere.
export function archiveLinks(url, params, words) {
  return ["tar", "zip"].map((format) => h("a", { class: "button", href: `${url}${query({ ...params, format })}`, download: `${plain(words)}.${format}` }, `Download as ${format}`));
}

// -- a file's life ----------------------------------------------------------------------------------

export async function lifeView(place, agent, volume, params) {
  const base = volumePath(agent, volume);
  const view = { base, agent, volume, signal: place.signal };
  const found = await get(`${base}/life`, { path: params.path }, place.signal);
  const count = found.count ?? found.lives.length;
  place.replaceChildren(...heading(agent, volume, "browse"), h("h2", {}, "The life of ", path(found.path)),
    ...(count > found.lives.length ? [h("p", { class: "note warning" }, `${number(count)} files had this name, one after the other; these are the last ${number(found.lives.length)}.`)] : []),
    ...found.lives.map((life, at) => h("div", { class: "card" },
      h("h3", {}, count > 1 ? `File ${number(count - found.lives.length + at + 1)} of ${number(count)} that had this name` : `${number(life.count)} entries`),
      h("p", { class: "soft small" }, life.tenures.map((one) => `had the name from entry ${number(one.from_seq)}${one.to_seq > 1e15 ? " on" : ` to ${number(one.to_seq)}`}`).join("; ")),
      h("div", { class: "scroll" }, h("table", { class: "stack" },
        h("thead", {}, h("tr", {}, ["Entry", "Time", "User", "Operation"].map((words) => h("th", { scope: "col" }, words)), h("th", { scope: "col", class: "number" }, "Size after"), h("th", { scope: "col" }, "Name then"))),
        h("tbody", {}, life.entries.map((entry) => h("tr", { class: "rows" },
          h("td", {}, h("button", { type: "button", class: "plain", onclick: () => showEntry(entry.seq, view) }, number(entry.seq))),
          h("td", { class: "time" }, time(entry.time_ns)), h("td", {}, user(entry.uid, userNames)), h("td", {}, operation(entry.op)),
          h("td", { class: "number", "data-label": entry.size_after === null ? null : "Size after" }, entry.size_after === null ? "" : size(entry.size_after)),
          h("td", { class: "wide" }, path(entry.path), entry.new_path ? [" → ", path(entry.new_path)] : null,
            h("div", { class: "row small" }, actions(view, entry)))))))))),
    command(found.command));
}

function actions(view, entry) {
  const after = entry.new_path ?? entry.path;
  const isGone = entry.op === "unlink" || entry.op === "rmdir";
  const at = isGone ? entry.seq - 1 : entry.seq;
  if (after === null || at < 1 || entry.refused) return null;
  return [h("a", { href: to(view, { path: isGone ? entry.path : after, at }) }, isGone ? "As it was before" : "As it was then"),
    may("operator") && entry.size_after !== null ? h("a", { href: `${view.base}/content${query({ path: isGone ? entry.path : after, at })}`, download: plain((isGone ? entry.path : after).split("/").at(-1)) }, "Download") : null];
}

// -- what differs -----------------------------------------------------------------------------------

const WORDS = { A: "added", D: "removed", R: "renamed", M: "content", P: "attributes" };

export async function changesView(place, agent, volume, params) {
  const base = volumePath(agent, volume);
  const submit = (event) => {
    event.preventDefault();
    app.go(["v", agent, volume, "changes"], Object.fromEntries(new FormData(event.target)));
  };
  const input = (words, key, required) => h("label", { class: "grow" }, words, h("input", { name: key, value: params[key] ?? "", inputmode: key === "path" ? null : "numeric", required }));
  const result = h("div", {});
  place.replaceChildren(...heading(agent, volume, "changes"),
    h("form", { class: "card row end", onsubmit: submit }, input("After entry", "from", true), input("Up to entry (empty: now)", "to", false), input("Path", "path", false), h("button", { class: "main" }, "Compare")), result);
  if (params.from === undefined) {
    result.replaceChildren(h("p", { class: "empty" }, "Two moments, and what differs between them."));
    return;
  }
  result.replaceChildren(spinner());
  const found = await get(`${base}/difference`, { from_seq: params.from, to_seq: params.to, path: params.path }, place.signal);
  result.replaceChildren(h("div", { class: "card" }, h("h2", {}, `${number(found.count)} ${found.count === 1 ? "file differs" : "files differ"}`),
    changeTable(found, (one) => h("a", { href: app.link(["v", agent, volume, "life"], { path: one.new_path ?? one.old_path }) }, path(one.old_path ?? one.new_path)),
      may("operator") ? (one) => showLines(base, one, params) : null),
    command(found.command)));
}

// The lines that differ in a text file.
async function showLines(base, one, params) {
  const title = `Lines of ${plain(one.new_path ?? one.old_path)}`;
  const dialog = h("dialog", { "aria-label": title });
  const close = h("button", { type: "button", onclick: () => dialog.close() }, "Close");
  dialog.replaceChildren(spinner(), close);
  openDialog(dialog, close);
  let body;
  try {
    const found = await get(`${base}/line-difference`, { path: one.old_path, new_path: one.new_path, from_seq: params.from, to_seq: params.to });
    const kinds = { "+": "made", "-": "removed", "@": "soft" };
    body = found.lines.length ? h("pre", { tabindex: 0, class: "lines" }, found.lines.map((line) => h("span", { class: kinds[line[0]] ?? "" }, `${plain(line)}\n`)))
      : h("p", {}, "Its content is the same.");
    body = [body, command(found.command)];
  } catch (error) {
    body = [failure(error)];
  }
  dialog.replaceChildren(h("div", { class: "head" }, h("h2", {}, title), close), ...body);
  close.focus();
}

// What differs, a row a file; *shown* makes the path, *lines* shows what differs in a text.
export function changeTable(found, shown, lines = null) {
  if (!found.count) return null;
  const hasUsers = found.changes.some((one) => one.uids?.length);
  return h("div", {}, h("div", { class: "scroll" }, h("table", { class: "stack" },
    h("thead", {}, h("tr", {}, ["What", "Path", ...(hasUsers ? ["Users", "Entries"] : [])].map((words) => h("th", { scope: "col" }, words)))),
    h("tbody", {}, found.changes.map((one) => h("tr", { class: "rows" },
      h("td", {}, [...one.letters].map((letter) => WORDS[letter]).join(", ")),
      h("td", { class: "wide" }, shown(one), one.renamed ? [" → ", path(one.new_path)] : null,
        lines && one.letters.includes("M") && one.old_path && one.new_path ? [" ", h("button", { type: "button", class: "plain", "aria-label": `Lines of ${plain(one.new_path)}`, onclick: () => lines(one) }, "Lines")] : null),
      hasUsers ? [h("td", {}, one.uids.map((uid, at) => [at ? ", " : "", user(uid, userNames)])), h("td", { class: "number", "data-label": "Entries" }, number(one.entries))] : null))))),
  found.count > found.changes.length ? h("p", { class: "soft" }, `The first ${number(found.changes.length)}; the command line has them all.`) : null);
}
