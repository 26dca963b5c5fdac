// The timeline of a volume: a chart, the entries as a list, and what is chosen in it.

import { get, poll, post, may, volumePath, userNames } from "./api.js";
import * as app from "./app.js";
import { chart } from "./chart.js";
import { h, user, path, name, number, size, time, command, failure, spinner, say, facts, clock, quoted, otherWays } from "./dom.js";
import { openDialog } from "./dialogs.js";
import { heading, operation, OPERATIONS, GROUP_NAMES, groupOf } from "./volume.js";

const PAGE = 100;
const ROWS_MAX = 5000;
// New entries that are added to a list; of more, it begins anew.
const NEW_MAX = 1000;

export async function timelineView(place, agent, volume, params) {
  const base = volumePath(agent, volume);
  const filter = { path: params.path, since: params.since, until: params.until, uid: params.uid, op: params.op, bytes_min: params.bytes_min, bytes_max: params.bytes_max };
  const chosen = new Map();
  const chartPlace = h("div", { class: "card" }, spinner("Counting…"));
  const list = h("div", { class: "card" });
  place.replaceChildren(...heading(agent, volume, "timeline"), filterForm(agent, volume, params), chartPlace, list);
  drawChart(chartPlace, base, filter, params, agent, volume, place.signal);
  await drawList(list, { base, filter, chosen, agent, volume, signal: place.signal });
}

// -- the filter -------------------------------------------------------------------------------------

function filterForm(agent, volume, params) {
  const input = (words, key, hint) => h("label", { class: "grow" }, words,
    h("input", { name: key, value: params[key] ?? "", placeholder: hint, spellcheck: "false", autocapitalize: "none" }));
  const submit = (event) => {
    event.preventDefault();
    const asked = Object.fromEntries(new FormData(event.target));
    for (const key of SIZES) asked[key] = bytesOf(asked[key]);
    app.go(["v", agent, volume, "timeline"], { ...asked, by: params.by });
  };
  const isFiltered = ["path", "since", "until", "uid", "op", ...SIZES].some((key) => params[key]);
  return h("form", { class: "card row end", onsubmit: submit, role: "search", "aria-label": "Filter" },
    input("Path or pattern", "path", "home/anna or *.odt"),
    h("label", {}, "Operation", h("select", { name: "op" }, h("option", { value: "" }, "all"),
      h("option", { value: "unlink,rmdir", selected: params.op === "unlink,rmdir" }, "removals"),
      h("option", { value: "write,truncate", selected: params.op === "write,truncate" }, "rewrites"),
      OPERATIONS.map((op) => h("option", { value: op, selected: params.op === op }, op)))),
    h("label", {}, "User (uid)", h("input", { name: "uid", value: params.uid ?? "", inputmode: "numeric", pattern: "[0-9]*", size: 6 })),
    input("From", "since", "2 hours ago"), input("To", "until", "14:00, or a mark"),
    SIZES.map((key) => h("label", {}, key === "bytes_min" ? "Wrote at least" : "Wrote at most", h("input", { name: key, value: params[key] ? size(Number(params[key])) : "", placeholder: "1 MiB", size: 8, pattern: SIZE_PATTERN, title: "Bytes, KiB, MiB or GiB" }))),
    h("button", { class: "main" }, "Show"),
    isFiltered ? h("a", { class: "button", href: app.link(["v", agent, volume, "timeline"]) }, "All") : null);
}

const SIZES = ["bytes_min", "bytes_max"];
const SIZE_PATTERN = "\\s*[0-9]+([.][0-9]+)?\\s*([KkMmGg]?([Ii]?[Bb])?)\\s*";

// "1.5 MiB" as bytes; units are of 1,024.
function bytesOf(text) {
  const [, count, unit] = /^\s*([0-9.]+)\s*([kmg]?)/i.exec(text) ?? [];
  return count === undefined ? "" : String(Math.round(Number(count) * 1024 ** " kmg".indexOf((unit || " ").toLowerCase())));
}

// -- the chart --------------------------------------------------------------------------------------

async function drawChart(place, base, filter, params, agent, volume, signal) {
  const { path: _, ...rest } = filter;
  const byUser = params.by === "user";
  const choose = (from, to) => app.go(["v", agent, volume, "timeline"],
    { ...filter, by: params.by, since: `@${(from / 1e9).toFixed(0)}`, until: `@${(to / 1e9).toFixed(0)}` });
  for (let ask = get; ; ask = poll) {
    let found;
    try {
      found = await ask(`${base}/histogram`, { ...rest, bars: 120 }, signal);
    } catch (error) {
      if (error.name !== "AbortError") place.replaceChildren(failure(error));
      return;
    }
    const [bars, names] = byUser ? users(found.by_uid) : groups(found.by_op);
    const toggle = h("a", { class: "button", href: app.link(["v", agent, volume, "timeline"], { ...filter, by: byUser ? "" : "user" }) },
      byUser ? "By operation" : "By user");
    place.replaceChildren(
      h("div", { class: "head" }, h("h2", {}, byUser ? "Entries by user" : "Entries by operation"), toggle),
      chart({ from: found.from_ns, step: found.step_ns, bars, names }, choose),
      h("div", { class: "row" }, names.map((one, at) => h("span", { class: "key" }, h("i", { class: `b${Math.min(at, 5)}` }), one)),
        h("span", { class: "soft small" }, filter.path || SIZES.some((key) => filter[key]) ? "The chart counts all paths and sizes. " : "",
          found.entries_left ? `Counting: ${number(found.entries_left)} entries left.` : "Drag over it to look closer.")));
    if (!found.entries_left || signal.aborted) return;
    await new Promise((done) => setTimeout(done, 150));
  }
}

function groups(byOp) {
  const bars = byOp.map((bar) => {
    const sums = {};
    for (const [op, count] of Object.entries(bar)) sums[GROUP_NAMES[groupOf(op)]] = (sums[GROUP_NAMES[groupOf(op)]] ?? 0) + count;
    return sums;
  });
  return [bars, GROUP_NAMES];
}

function users(byUid) {
  const sums = new Map();
  for (const bar of byUid) for (const [uid, count] of Object.entries(bar)) sums.set(uid, (sums.get(uid) ?? 0) + count);
  const first = [...sums].sort((one, other) => other[1] - one[1]).slice(0, 5).map(([uid]) => uid);
  const bars = byUid.map((bar) => {
    const found = {};
    for (const [uid, count] of Object.entries(bar)) {
      const key = first.includes(uid) ? userNames[uid] ?? `uid ${uid}` : "others";
      found[key] = (found[key] ?? 0) + count;
    }
    return found;
  });
  return [bars, [...first.map((uid) => userNames[uid] ?? `uid ${uid}`), ...(sums.size > 5 ? ["others"] : [])]];
}

// -- the list ---------------------------------------------------------------------------------------

async function drawList(place, view) {
  const { base, filter, signal } = view;
  const body = h("tbody", {});
  const more = h("div", { class: "row" });
  // It stays in sight, however long the list has become.
  const bottom = may("operator") ? h("div", { class: "bottom" }) : h("div", {});
  const commandPlace = h("div", {});
  const table = h("table", { class: "stack" }, h("caption", { class: "soft small" }, "Newest first"),
    h("thead", {}, h("tr", {}, may("operator") ? h("th", { scope: "col" }, "Take") : null,
      ["Entry", "Time", "User", "Operation", "Path"].map((words) => h("th", { scope: "col" }, words)))), body);
  place.replaceChildren(h("div", { class: "head" }, h("h2", {}, "Entries"), may("operator") ? markForm(view) : null), h("div", { class: "scroll" }, table), more, bottom, commandPlace);
  let next = null;
  let newest = 0;
  let rows = 0;
  const row = (entry) => entryRow(entry, view, () => drawBottom(bottom, view));
  const load = async () => {
    if (next === undefined) return;
    more.replaceChildren(spinner());
    const from = next;
    next = undefined;
    const page = await get(`${base}/entries`, { ...filter, count: PAGE, before_seq: from }, signal);
    for (const entry of page.entries) body.append(row(entry));
    rows += page.entries.length;
    if (from === null) newest = page.head_seq;
    if (from === null) commandPlace.replaceChildren(command(page.command) ?? "");
    next = page.next_before_seq ?? undefined;
    const button = h("button", { type: "button", onclick: () => load().catch(wrong) }, "More");
    if (next === undefined) more.replaceChildren(h("p", { class: "soft" }, rows ? `That is all: ${number(rows)} shown.` : "No entry fits."));
    else more.replaceChildren(button, h("span", { class: "soft small" }, `looked down to entry ${number(page.first_searched_seq)}`));
    if (next !== undefined && rows < ROWS_MAX) {
      // An empty page is one that ran out of time: the search goes on.
      if (!page.entries.length) await load();
      else watcher.observe(button);
    }
  };
  const wrong = (error) => { if (error.name !== "AbortError") more.replaceChildren(failure(error)); };
  const watcher = new IntersectionObserver((seen) => {
    if (seen.some((one) => one.isIntersecting)) { watcher.disconnect(); load().catch(wrong); }
  }, { rootMargin: "300px" });
  signal.addEventListener("abort", () => watcher.disconnect());
  drawBottom(bottom, view);
  await load().catch(wrong);
  let isBusy = false;
  app.live.addEventListener("change", async () => {
    const head = headOf(view);
    if (head <= newest || isBusy || filter.until) return;
    isBusy = true;
    try {
      const { found, isWhole, headSeq } = await since(newest + 1, view);
      if (isWhole && rows + found.length <= ROWS_MAX) {
        body.prepend(...found.map(row));
        rows += found.length;
        newest = headSeq;
      } else {
        // More has come than a page shows: the list begins anew.
        watcher.disconnect();
        body.replaceChildren();
        [rows, next] = [0, null];
        await load();
      }
    } catch (error) {
      wrong(error);
    }
    isBusy = false;
  }, { signal });
}

// The entries from *fromSeq* on, newest first; isWhole: all of them.
async function since(fromSeq, { base, filter, signal }) {
  const found = [];
  let headSeq = null;
  let before = null;
  while (before !== undefined && found.length < NEW_MAX) {
    const page = await get(`${base}/entries`, { ...filter, count: PAGE, from_seq: fromSeq, before_seq: before }, signal);
    headSeq ??= page.head_seq;
    found.push(...page.entries);
    before = page.next_before_seq ?? undefined;
  }
  return { found, isWhole: before === undefined, headSeq };
}

function headOf({ agent, volume }) {
  const found = app.overview?.agents.find((one) => one.name === agent)?.volumes.find((one) => one.name === volume);
  return found?.head_seq ?? 0;
}

function entryRow(entry, view, changed) {
  const { chosen } = view;
  const box = may("operator") ? h("td", {}, h("input", {
    type: "checkbox", checked: chosen.has(entry.seq), "aria-label": `Choose entry ${entry.seq}`,
    onchange: (event) => { if (event.target.checked) chosen.set(entry.seq, entry); else chosen.delete(entry.seq); changed(); },
  })) : null;
  return h("tr", { class: "rows" }, box,
    h("td", {}, h("button", { type: "button", class: "plain", onclick: () => showEntry(entry.seq, view) }, number(entry.seq))),
    h("td", { class: "time" }, time(entry.time_ns)), h("td", {}, user(entry.uid, userNames)), h("td", {}, operation(entry.op)),
    h("td", { class: "wide" }, entry.path === null ? "" : h("a", { href: app.link(["v", view.agent, view.volume, "life"], { path: entry.path }) }, path(entry.path)), details(entry)));
}

function details(entry) {
  const parts = [];
  if (entry.new_path !== undefined && entry.new_path !== null) parts.push(" → ", path(entry.new_path));
  if (entry.bytes !== undefined) parts.push(h("span", { class: "soft" }, `  ${size(entry.bytes)} at ${number(entry.offset)}`));
  if (entry.op === "truncate") parts.push(h("span", { class: "soft" }, `  to ${size(entry.size)}`));
  if (entry.op === "mark") parts.push(name(entry.name ?? entry.removed_name), entry.name === null ? " is removed" : "");
  if (entry.refused) parts.push(h("span", { class: "refused" }, `  refused: ${entry.refused}`));
  return parts;
}

// A name for the present point.
function markForm(view) {
  const mark = async (event) => {
    event.preventDefault();
    const field = event.target.elements.namedItem("mark");
    try {
      const made = await post(`${view.base}/marks`, { name: field.value });
      say(`Marked as entry ${number(made.seq)}`);
      field.value = "";
    } catch (error) {
      say(error.message);
    }
  };
  return h("form", { class: "row", onsubmit: mark },
    h("input", { name: "mark", placeholder: "before the upgrade", "aria-label": "Mark this point with the name", required: true }),
    h("button", {}, "Mark this point"), otherWays([["Mark this point", `fusejournal mark ${quoted(view.volume)} NAME`]]));
}

// -- what is chosen ---------------------------------------------------------------------------------

function ranges(seqs) {
  const sorted = [...seqs].sort((one, other) => one - other);
  const found = [];
  for (const seq of sorted) {
    const last = found.at(-1);
    if (last && last[1] + 1 === seq) last[1] = seq; else found.push([seq, seq]);
  }
  return found.map(([first, last]) => (first === last ? String(first) : `${first}-${last}`));
}

function drawBottom(place, view) {
  if (!may("operator")) return;
  const { chosen, filter } = view;
  // An undo knows no sizes: it would take back more than is shown.
  const isFiltered = Object.values(filter).some(Boolean) && !SIZES.some((key) => filter[key]);
  const conflict = h("select", { "aria-label": "Where later changes rely on it" },
    h("option", { value: "stop" }, "stop where later changes are in the way"),
    h("option", { value: "skip" }, "leave those that later changes rely on"),
    h("option", { value: "aside" }, "bring back beside what took the name"));
  const plan = (fields) => begin(view, { kind: "undo", volume: view.volume, on_conflict: conflict.value, ...fields });
  const words = { ...filter, op: filter.op ? [filter.op] : [], uid: filter.uid ? Number(filter.uid) : undefined };
  place.replaceChildren(h("div", { class: "row end" },
    h("button", { type: "button", class: "main", disabled: !chosen.size, onclick: () => plan({ seqs: ranges(chosen.keys()) }) },
      chosen.size ? `Plan to take back ${number(chosen.size)} chosen` : "Choose entries to take back"),
    isFiltered ? h("button", { type: "button", onclick: () => plan(words) }, "Plan to take back all that the filter shows") : null,
    conflict));
}

export async function begin(view, fields) {
  try {
    for (const key of Object.keys(fields)) if (fields[key] === undefined || fields[key] === "") delete fields[key];
    const job = await post(`/api/agents/${encodeURIComponent(view.agent)}/jobs`, fields);
    app.go(["jobs", view.agent, job.id]);
  } catch (error) {
    say(error.message);
  }
}

// -- one entry --------------------------------------------------------------------------------------

export async function showEntry(seq, { base, agent, volume }) {
  const dialog = h("dialog", { "aria-label": `Entry ${seq}` });
  const close = h("button", { type: "button", onclick: () => dialog.close() }, "Close");
  dialog.replaceChildren(spinner(), close);
  openDialog(dialog, close);
  try {
    const found = await get(`${base}/entries/${seq}`);
    const dataPlace = h("div", {});
    const canShow = may("operator") && found.entry.data_bytes > 0;
    const load = async () => {
      try {
        const full = await get(`${base}/entries/${seq}`, { data: 1 });
        dataPlace.replaceChildren(...dataOf(full));
      } catch (error) {
        dataPlace.replaceChildren(failure(error));
      }
    };
    dialog.replaceChildren(
      h("div", { class: "head" }, h("h2", {}, `Entry ${number(seq)}`), close),
      facts(Object.entries(found.entry).map(([key, value]) => [key, shownOf(found.entry, key, value)])),
      h("div", { class: "row" },
        h("a", { class: "button", href: app.link(["v", agent, volume, "browse"], { at: seq, path: above(found.entry.path) }), onclick: () => dialog.close() }, "Browse at this moment"),
        canShow ? h("button", { type: "button", onclick: load }, `Show its data, ${size(found.entry.data_bytes)}`) : null),
      dataPlace, command(found.command));
    close.focus();
  } catch (error) {
    dialog.replaceChildren(failure(error), close);
    close.focus();
  }
}

const above = (text) => (text ? text.split("/").slice(0, -1).join("/") : "");

// Values of extended attributes are not for viewers.
function shownOf(entry, key, value) {
  if (key === "hidden") return null;
  const seen = value === null || key !== "xattrs" ? shown(key, value) : name(value.map(([one, its]) => (its === null ? one : `${one}=${its}`)).join(", "));
  return entry.hidden?.includes(key) ? [seen, h("span", { class: "soft" }, `${seen === null ? "" : " "}(its value is shown to operators)`)] : seen;
}

function shown(key, value) {
  if (value === null || value === undefined) return null;
  if (key === "mode") return value.toString(8).padStart(6, "0");
  if (key === "time_ns" || key.endsWith("time_ns")) return `${value} (${clock(value)})`;
  return name(typeof value === "string" ? value : JSON.stringify(value));
}

function dataOf({ data, entry }) {
  const bytes = Uint8Array.from(atob(data), (char) => char.charCodeAt(0));
  const kind = picture(bytes);
  const parts = [];
  if (kind && bytes.length === entry.data_bytes) parts.push(h("img", { src: `data:${kind};base64,${data}`, alt: "The data as a picture" }));
  let text = null;
  try { text = new TextDecoder("utf-8", { fatal: true }).decode(bytes); } catch { text = null; }
  if (text !== null && !/[\u0000-\u0008\u000e-\u001f]/.test(text)) parts.push(h("h3", {}, "As text"), h("pre", { tabindex: 0 }, text));
  parts.push(h("h3", {}, "As bytes"), h("pre", { tabindex: 0 }, dump(bytes.slice(0, 4096), entry.offset ?? 0)));
  if (bytes.length > 4096) parts.push(h("p", { class: "soft" }, `The first 4,096 of ${number(entry.data_bytes)} bytes.`));
  return parts;
}

function picture(bytes) {
  const starts = (...codes) => codes.every((code, at) => bytes[at] === code);
  if (starts(0x89, 0x50, 0x4e, 0x47)) return "image/png";
  if (starts(0xff, 0xd8, 0xff)) return "image/jpeg";
  if (starts(0x47, 0x49, 0x46, 0x38)) return "image/gif";
  return null;
}

function dump(bytes, offset) {
  const lines = [];
  for (let at = 0; at < bytes.length; at += 16) {
    const part = [...bytes.slice(at, at + 16)];
    const hex = part.map((byte) => byte.toString(16).padStart(2, "0")).join(" ").padEnd(48);
    const text = part.map((byte) => (byte >= 32 && byte < 127 ? String.fromCharCode(byte) : ".")).join("");
    lines.push(`${(offset + at).toString(16).padStart(8, "0")}  ${hex} |${text}|`);
  }
  return lines.join("\n");
}
