// Elements, and how values are shown. Nothing here ever takes a text for markup.

export function h(tag, props, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(props ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) handle(element, key.slice(2), value);
    else if (key === "value" || key === "checked" || key === "disabled" || key === "selected") element[key] = value;
    else element.setAttribute(key, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter((one) => one !== null && one !== undefined && one !== false));
  return element;
}

// What each element does on an event, by the event's name: refresh() gives it to another one.
const HANDLERS = new WeakMap();

function handle(element, type, act) {
  if (!HANDLERS.has(element)) HANDLERS.set(element, {});
  HANDLERS.get(element)[type] = act;
  element.addEventListener(type, (event) => HANDLERS.get(element)[type]?.(event));
}

// Has *place* show *fresh*, and keeps each element that is the same: a button stays the one that is
// pressed, or has the focus, while what is beside it changes. What is of another thing, by its
// data-key, is another.
export function refresh(place, ...fresh) {
  const was = focusIn(place);
  fill(place, fresh);
  focusAgain(place, was);
}

function fill(place, fresh) {
  const wanted = fresh.flat(Infinity).filter((one) => one !== null && one !== undefined && one !== false && one !== "");
  const nodes = wanted.map((one) => (one instanceof Node ? one : document.createTextNode(one)));
  const known = [...place.childNodes];
  nodes.forEach((node, at) => {
    if (at >= known.length) place.append(node);
    else if (!isTaken(known[at], node)) known[at].replaceWith(node);
  });
  for (const left of known.slice(nodes.length)) left.remove();
}

// Returns true if *known* shows what *node* does now, and does the same.
function isTaken(known, node) {
  if (known.nodeType !== node.nodeType || known.nodeName !== node.nodeName) return false;
  if (known.dataset?.key !== node.dataset?.key) return false;
  if (known.nodeType === Node.TEXT_NODE) {
    if (known.data !== node.data) known.data = node.data;
    return true;
  }
  const [before, now] = [HANDLERS.get(known) ?? {}, HANDLERS.get(node) ?? {}];
  if (Object.keys(before).join() !== Object.keys(now).join()) return false;
  // What acts on something is the same only where all that it shows is: it never comes to act on another.
  const acts = ["A", "BUTTON", "INPUT", "SELECT", "TEXTAREA"].includes(known.nodeName);
  if (acts && (!known.isEqualNode(node) || known.disabled !== node.disabled)) return false;
  for (const { name } of [...known.attributes]) if (!node.hasAttribute(name) && name !== "open") known.removeAttribute(name);
  for (const { name, value } of node.attributes) if (known.getAttribute(name) !== value) known.setAttribute(name, value);
  if (Object.keys(now).length) HANDLERS.set(known, now);
  if (!acts) fill(known, [...node.childNodes]);
  return true;
}

// -- the focus ------------------------------------------------------------------------------------

const ACTING = "a[href], button, input, select, textarea, summary, [tabindex='0']";
const acting = (place) => [...place.querySelectorAll(ACTING)].filter((one) => !one.disabled && one.tabIndex >= 0);
const signOf = (one) => [one.nodeName, one.getAttribute("aria-label") || one.name || one.getAttribute("href") || one.textContent].join(" ");

// Where the focus is within *place*, so that it can be given to what comes there instead; null where
// it is elsewhere.
export function focusIn(place) {
  const element = document.activeElement;
  if (!element || element === place || !place.contains(element)) return null;
  const sign = signOf(element);
  const all = acting(place);
  return { element, sign, same: all.filter((one) => signOf(one) === sign).indexOf(element), at: all.indexOf(element) };
}

// Gives the focus, if it was lost, to what is called as what had it, else to what stands where that
// was, else to the content as a whole. Returns true if it is at the same again.
export function focusAgain(place, was) {
  if (!was || (was.element.isConnected && document.activeElement === was.element)) return true;
  const lost = [null, document.body, document.getElementById("main")].includes(document.activeElement);
  if (!lost || document.querySelector("dialog[open]")) return true;
  const all = acting(place);
  const same = all.filter((one) => signOf(one) === was.sign);
  const found = same[was.same] ?? same.at(-1);
  const instead = all[was.at]?.nodeName === was.element.nodeName ? all[was.at] : document.getElementById("main");
  (found ?? instead).focus({ preventScroll: true });
  return Boolean(found);
}

const SVG = "http://www.w3.org/2000/svg";
export function s(tag, props, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(props ?? {})) element.setAttribute(key, String(value));
  element.append(...children);
  return element;
}

// Bytes that are no UTF-8 come as lone surrogates U+DC80 to U+DCFF. They, control characters, and
// those that turn the direction of a text are shown as what they are.
const ODD = /[\u0000-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;

function escaped(char) {
  const code = char.charCodeAt(0);
  if (code >= 0xdc80 && code <= 0xdcff) return `\\x${(code & 0xff).toString(16)}`;
  if (char === "\n") return "\\n";
  if (char === "\t") return "\\t";
  return code < 0x100 ? `\\x${code.toString(16).padStart(2, "0")}` : `\\u${code.toString(16).padStart(4, "0")}`;
}

export function plain(text) {
  return text.replace(ODD, escaped);
}

// A name or path, each odd character marked.
export function name(text) {
  const shown = h("span", { class: "name" });
  let at = 0;
  for (const match of text.matchAll(ODD)) {
    if (match.index > at) shown.append(text.slice(at, match.index));
    shown.append(h("span", { class: "esc" }, escaped(match[0])));
    at = match.index + match[0].length;
  }
  shown.append(text.slice(at));
  return shown;
}

export function path(text) {
  return text === null || text === undefined ? h("span", { class: "soft" }, "not known") : name("/" + text);
}

const NUMBER = new Intl.NumberFormat("en");
export const number = (value) => (value === null || value === undefined ? "–" : NUMBER.format(value));

export function size(bytes) {
  if (bytes === null || bytes === undefined) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let unit = 0;
  while (bytes >= 1024 && unit < units.length - 1) { bytes /= 1024; unit += 1; }
  return unit === 0 ? `${bytes} B` : `${bytes.toFixed(1)} ${units[unit]}`;
}

export function duration(seconds) {
  if (seconds < 1) return "now";
  const whole = Math.round(seconds);
  for (const [unit, word, below, belowWord] of [[86400, "d", 3600, "h"], [3600, "h", 60, "min"], [60, "min", 1, "s"]]) {
    if (whole >= unit) return `${Math.floor(whole / unit)} ${word} ${Math.floor((whole % unit) / below)} ${belowWord}`;
  }
  return `${whole} s`;
}

// A round one without its zeros: of a schedule, or a limit.
export const period = (seconds) => duration(seconds).replace(/ 0 \w+$/, "");

const two = (value) => String(value).padStart(2, "0");
export function clock(ns, withDay = true) {
  if (!ns) return "–";
  const date = new Date(ns / 1e6);
  const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  const time = `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
  return withDay ? `${day} ${time}` : time;
}

export function time(ns, withDay = true) {
  return h("time", { datetime: new Date(ns / 1e6).toISOString() }, clock(ns, withDay));
}

export function ago(ns) {
  const seconds = Date.now() / 1e3 - ns / 1e9;
  return seconds < 1 ? "just now" : `${duration(seconds)} ago`;
}

export function user(uid, names) {
  if (uid === null || uid === undefined) return "–";
  return names[uid] ? h("span", { title: `uid ${uid}` }, names[uid]) : `uid ${uid}`;
}

export function pill(kind, words) {
  return h("span", { class: `pill ${kind}` }, words);
}

export function facts(pairs) {
  return h("dl", { class: "facts" }, pairs.filter(([, value]) => value !== null && value !== undefined && value !== "")
    .map(([key, value]) => [h("dt", {}, key), h("dd", {}, value)]));
}

// The command line that does the same.
export function command(text) {
  if (!text) return null;
  const button = h("button", { type: "button", onclick: async () => {
    await navigator.clipboard.writeText(text);
    say("Copied");
  } }, "Copy");
  return h("div", { class: "command" }, h("code", { "aria-label": "The command line that does the same" }, text), button);
}

// As a shell takes it.
export const quoted = (word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);

// The line that asks the API for what a button does, with a token.
export function asked(path, body = {}) {
  return `curl -H "Authorization: Bearer $TOKEN" -H "Content-Type: application/json" -d ${quoted(JSON.stringify(body))} ${quoted(location.origin + path)}`;
}

// The command lines that do the same as several buttons, each with its words.
export function otherWays(lines) {
  const shown = lines.filter(Boolean);
  if (!shown.length) return null;
  return h("details", { class: "ways small" }, h("summary", {}, "The same by command line"),
    shown.map(([words, text]) => h("div", {}, h("span", { class: "soft" }, words), command(text))),
    shown.some(([, text]) => text.startsWith("curl ")) ? h("p", { class: "soft" }, "TOKEN is what 'fusejournal console token create' has shown.") : null);
}

let quiet;
export function say(words) {
  document.getElementById("said").textContent = words;
  clearTimeout(quiet);
  quiet = setTimeout(() => { document.getElementById("said").textContent = ""; }, 4000);
}

// A field of a form, with its label.
export function field(words, name, props = {}) {
  return h("label", {}, words, h("input", { name, autocapitalize: "none", spellcheck: "false", ...props }));
}

export function failure(error) {
  return h("div", { class: "note bad", role: "alert" }, error.message);
}

export function spinner(words = "Loading…") {
  return h("p", { class: "soft", role: "status" }, words);
}
