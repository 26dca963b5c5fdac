// The page's frame: who is logged in, which view is shown, and the overview as it changes.

import { poll, post, restoreSession, session, may, encode } from "./api.js";
import { h, clock, failure, focusAgain, focusIn, refresh, spinner } from "./dom.js";
import { loginView } from "./login.js";
import { overviewView } from "./overview.js";
import { timelineView } from "./timeline.js";
import { browseView, lifeView, changesView } from "./browse.js";
import { jobsView, jobView } from "./jobs.js";
import { versionsView } from "./versions.js";
import { rolesView } from "./roles.js";
import { auditView } from "./audit.js";

const main = document.getElementById("main");
let leave = () => {};
let shown = "";

// -- the overview, live ---------------------------------------------------------------------------

export const live = new EventTarget();
export let overview = null;
let source = null;
// Since when the console has not answered: what is shown is older than that.
let awaySince = null;

function listen() {
  if (source || document.hidden || !session.name) return;
  source = new EventSource("/api/events");
  source.addEventListener("open", () => away(false));
  source.addEventListener("error", listenAgain);
  source.addEventListener("overview", (event) => {
    overview = JSON.parse(event.data);
    live.dispatchEvent(new Event("change"));
    showTop();
  });
  source.addEventListener("over", listenAgain);
}

function away(is) {
  if (is === (awaySince !== null)) return;
  awaySince = is ? Date.now() * 1e6 : null;
  showTop();
}

// A browser goes on by itself after some failures alone, and shows none of them. Asking who is
// logged in finds out whether the session is over, the console away, or neither.
async function listenAgain() {
  stopListening();
  try {
    const found = await poll("/api/session");
    away(false);
    if (!found.name) {
      end();
      return;
    }
  } catch (error) {
    if (error.status === 401) return;
    away(true);
  }
  setTimeout(listen, 2000);
}

function stopListening() {
  source?.close();
  source = null;
}

// A page that nobody looks at asks for nothing.
document.addEventListener("visibilitychange", () => (document.hidden ? stopListening() : listen()));

// -- routes -----------------------------------------------------------------------------------------

// #/v/AGENT/VOLUME/browse?path=...: names are encoded as in a query, byte for byte.
function decode(text) {
  const bytes = [];
  for (let at = 0; at < text.length; at += 1) {
    if (text[at] === "%") { bytes.push(parseInt(text.slice(at + 1, at + 3), 16)); at += 2; } else bytes.push(text.charCodeAt(at));
  }
  const raw = new Uint8Array(bytes);
  let found = "";
  for (let at = 0; at < raw.length;) {
    let length = raw[at] < 0x80 ? 1 : raw[at] >= 0xf0 ? 4 : raw[at] >= 0xe0 ? 3 : raw[at] >= 0xc2 ? 2 : 0;
    let char = null;
    if (length) {
      try { char = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(raw.slice(at, at + length)); } catch { char = null; }
    }
    if (char === null) { char = String.fromCharCode(0xdc00 + raw[at]); length = 1; }
    found += char;
    at += length;
  }
  return found;
}

export function go(parts, params = {}) {
  location.hash = link(parts, params);
}

export function link(parts, params = {}) {
  const words = Object.entries(params).filter(([, value]) => value !== undefined && value !== null && value !== "")
    .map(([key, value]) => `${encode(key)}=${encode(value)}`);
  return `#/${parts.map(encode).join("/")}${words.length ? `?${words.join("&")}` : ""}`;
}

function where() {
  const [, words, params] = /^#?\/?([^?]*)\??(.*)$/.exec(location.hash);
  const found = {};
  for (const part of params.split("&").filter(Boolean)) {
    const at = part.indexOf("=");
    found[decode(part.slice(0, at))] = decode(part.slice(at + 1));
  }
  return [words.split("/").filter(Boolean).map(decode), found];
}

function viewOf(parts, params) {
  const [first, agent, volume, view] = parts;
  if (first === "v" && volume) {
    const views = { timeline: timelineView, browse: browseView, life: lifeView, changes: changesView, versions: versionsView, roles: rolesView };
    const known = views[view] ?? timelineView;
    return [`${volume} on ${agent}`, (place) => known(place, agent, volume, params)];
  }
  if (first === "jobs" && volume) return ["Job", (place) => jobView(place, agent, volume)];
  if (first === "jobs") return ["Recovery", (place) => jobsView(place)];
  if (first === "audit") return ["Audit", (place) => auditView(place)];
  return ["Overview", (place) => overviewView(place)];
}

async function show() {
  leave();
  leave = () => {};
  if (!session.name) {
    showTop();
    document.title = "Log in – fusejournal";
    main.replaceChildren();
    loginView(main, begin);
    return;
  }
  const [parts, params] = where();
  const [title, view] = viewOf(parts, params);
  document.title = `${title} – fusejournal`;
  const place = h("div", {}, spinner());
  const was = focusIn(main);
  main.replaceChildren(place);
  showTop();
  // What was pressed is gone. Within one view the focus goes to the same again, once that is there.
  if (was || (shown && shown !== title)) main.focus({ preventScroll: true });
  const isSame = shown === title;
  shown = title;
  const gone = new AbortController();
  leave = () => gone.abort();
  try {
    place.signal = gone.signal;
    if (was && isSame) keepFocus(place, was);
    await view(place);
  } catch (error) {
    if (error.name !== "AbortError" && !gone.signal.aborted) {
      place.replaceChildren(h("h1", {}, title), failure(error), h("button", { type: "button", onclick: show }, "Try again"));
    }
  }
}

const FOCUS_MS = 5000;

// Gives the focus to what is called as what had it, when it comes; unless it is elsewhere by then.
function keepFocus(place, was) {
  const main = document.getElementById("main");
  const look = () => {
    if (document.activeElement !== main && document.activeElement !== document.body) watcher.disconnect();
    else if (focusAgain(place, { ...was, at: -1 })) watcher.disconnect();
  };
  const watcher = new MutationObserver(look);
  watcher.observe(place, { childList: true, subtree: true });
  const stop = () => watcher.disconnect();
  place.signal.addEventListener("abort", stop);
  setTimeout(stop, FOCUS_MS);
}

// The link to the content is no address of a view.
document.querySelector("a.skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});

function showTop() {
  const [parts] = where();
  const alerts = (overview?.alerts ?? []).filter((one) => !one.acknowledged && !one.silenced).length;
  const items = [["Overview", [], alerts], ["Recovery", ["jobs"]]];
  if (may("admin")) items.push(["Audit", ["audit"]]);
  const current = parts[0] ?? "";
  const bar = h("div", { class: "bar" },
    h("a", { class: "brand", href: "#/" }, h("img", { src: "/static/icon.svg", alt: "" }), "fusejournal"));
  if (session.name) {
    bar.append(
      h("nav", { "aria-label": "Main" }, items.map(([words, target, count]) => h("a", {
        href: link(target), "aria-current": (target[0] ?? "") === (current === "v" ? "" : current) ? "page" : null,
      }, words, count ? [" ", h("span", { class: "pill bad" }, String(count))] : null))),
      h("div", { class: "who" }, h("span", {}, `${session.name}, ${session.role}`),
        h("button", { type: "button", onclick: logout }, "Log out")));
  }
  const note = awaySince === null ? [] : [h("p", { class: "note bad away", role: "alert" }, `The console does not answer since ${clock(awaySince, false)}: what is shown here is from before.`)];
  refresh(document.getElementById("top"), bar, ...note);
}

async function logout() {
  await post("/api/logout").catch(() => {});
  end();
}

function end() {
  stopListening();
  Object.assign(session, { name: "", role: "", csrf: "" });
  overview = null;
  awaySince = null;
  show();
}

function begin() {
  listen();
  show();
}

window.addEventListener("hashchange", show);
window.addEventListener("session-over", end);
if (await restoreSession()) listen();
show();
