// What the policy makes of a volume's versions, on a month's calendar: each version on its day, what
// keeps it, and the day on which it is let go. Days are UTC's, because the policy counts those.

import { get } from "./api.js";
import * as app from "./app.js";
import { h, name, plain, number, duration, period, pill, facts, command, failure } from "./dom.js";

const DAY_MS = 86400000;
const WEEK = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
const MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"];
const CHIPS_MAX = 3;

const two = (value) => String(value).padStart(2, "0");
// A day is the number of days since 1970; a month the number of months since the year 0.
const dayOf = (ns) => Math.floor(ns / 1e6 / DAY_MS);
const dateOf = (day) => new Date(day * DAY_MS);
const monthOf = (day) => dateOf(day).getUTCFullYear() * 12 + dateOf(day).getUTCMonth();
const firstOf = (month) => Date.UTC(Math.floor(month / 12), month % 12, 1) / DAY_MS;
const weekdayOf = (day) => (dateOf(day).getUTCDay() + 6) % 7;
const monthWords = (month) => `${MONTHS[month % 12]} ${Math.floor(month / 12)}`;
const dayWords = (day) => `${WEEK[weekdayOf(day)]}, ${dateOf(day).getUTCDate()} ${monthWords(monthOf(day))}`;
const shortDay = (ns) => `${dateOf(dayOf(ns)).getUTCDate()} ${monthWords(monthOf(dayOf(ns)))}`;

function clockOf(ns) {
  const date = new Date(ns / 1e6);
  return `${two(date.getUTCHours())}:${two(date.getUTCMinutes())}`;
}

function moment(ns) {
  return h("time", { datetime: new Date(ns / 1e6).toISOString() }, `${shortDay(ns)}, ${clockOf(ns)} UTC`);
}

const titleOf = (one) => one.name || `entry ${number(one.seq)}`;
const counted = (count, one, many) => `${number(count)} ${count === 1 ? one : many}`;

// *view* keeps which day is chosen while the view is drawn anew.
export async function fillCalendar(place, view) {
  let found;
  try {
    found = await get(`${view.base}/retention`, {}, view.signal);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    place.replaceChildren(h("h2", {}, "Retention"), failure(error));
    return;
  }
  if (found.error !== null) {
    place.remove(); // the store's card says it
    return;
  }
  const days = eventsOf(found);
  const today = dayOf(found.now_ns);
  view.day ??= today;
  const grid = h("div", {});
  const panel = h("section", { class: "day", "aria-labelledby": "chosen-day" });
  const choose = (day, isFocused) => {
    view.day = day;
    grid.replaceChildren(...monthParts(days, view.day, today, choose));
    panel.replaceChildren(...dayParts(days.get(day), day, found, view));
    if (isFocused) grid.querySelector("button[tabindex='0']").focus();
  };
  place.replaceChildren(h("h2", {}, "Retention"), factsOf(found), ...remarksOf(found), grid, legend(), panel, command(found.command));
  choose(view.day, false);
}

// -- what there is -------------------------------------------------------------------------------

function eventsOf(found) {
  const days = new Map();
  const at = (ns) => {
    const day = dayOf(ns);
    if (!days.has(day)) days.set(day, { versions: [], going: [], due: [] });
    return days.get(day);
  };
  for (const one of found.versions) {
    at(one.time_ns).versions.push(one);
    const going = one.kept_as.length ? one.let_go_ns : one.prune_ns ?? found.now_ns;
    if (going !== null) at(going).going.push(one);
  }
  if (found.next_make_ns !== null) at(found.next_make_ns).due.push(["Next version", found.next_make_ns]);
  if (found.next_prune_ns !== null) at(found.next_prune_ns).due.push(["Next pruning", found.next_prune_ns]);
  return days;
}

const UNITS = { hourly: ["hour", "hours"], daily: ["day", "days"], weekly: ["week", "weeks"], monthly: ["month", "months"], yearly: ["year", "years"] };

function policyWords({ policy }) {
  const parts = policy.last ? [`the newest ${number(policy.last)}`] : [];
  const periods = Object.entries(UNITS).filter(([word]) => policy[word]).map(([word, [one, many]]) => counted(policy[word], one, many));
  if (periods.length) parts.push(`one of each of the last ${periods.join(", ")} that have any`);
  return parts.length ? `${parts.join("; ")}; always the newest, named and protected ones` : "all versions: no rule says which go";
}

function due(ns, found, none) {
  return ns === null ? none : h("span", {}, moment(ns), h("span", { class: "soft" }, ns > found.now_ns ? `, in ${duration((ns - found.now_ns) / 1e9)}` : ", due now"));
}

function factsOf(found) {
  const every = (seconds) => (seconds === null ? "" : `; every ${period(seconds)} by the schedule`);
  return facts([
    ["keeps", policyWords(found)],
    ["next version", h("span", {}, due(found.next_make_ns, found, found.every_seconds === null ? "no schedule: made when somebody asks for one" : "not by this node now"), every(found.every_seconds))],
    ["next pruning", h("span", {}, due(found.next_prune_ns, found, found.prune_every_seconds === null ? "no schedule: pruned when somebody asks for it" : "not by this node now"), every(found.prune_every_seconds))],
  ]);
}

function remarksOf(found) {
  if (!Object.values(found.policy).some(Boolean)) return [];
  const words = found.looked_until_ns === null
    ? "Until when each version is kept is not known, because no schedule says when further ones are made."
    : "When a version is let go is worked out as if something changed in each period of the schedule: in one without a change no version is made, and nothing goes.";
  return [h("p", { class: "soft small" }, words)];
}

// -- the month -----------------------------------------------------------------------------------

function monthParts(days, chosen, today, choose) {
  const month = monthOf(chosen);
  const first = firstOf(month);
  const begin = first - weekdayOf(first);
  const weeks = Math.ceil((firstOf(month + 1) - begin) / 7);
  const turn = (step) => {
    const length = firstOf(month + step + 1) - firstOf(month + step);
    return firstOf(month + step) + Math.min(dateOf(chosen).getUTCDate(), length) - 1;
  };
  const moves = {
    ArrowLeft: () => chosen - 1, ArrowRight: () => chosen + 1, ArrowUp: () => chosen - 7, ArrowDown: () => chosen + 7,
    Home: () => chosen - weekdayOf(chosen), End: () => chosen + 6 - weekdayOf(chosen), PageUp: () => turn(-1), PageDown: () => turn(1),
  };
  const onkeydown = (event) => {
    const move = moves[event.key];
    if (!move || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    choose(move(), true);
  };
  const page = (step, words) => h("button", { type: "button", "aria-label": `${words} month`, onclick: (event) => {
    choose(turn(step), false);
    document.querySelector(`[aria-label="${event.target.closest("button").getAttribute("aria-label")}"]`)?.focus();
  } }, step < 0 ? "‹" : "›");
  const rows = Array.from({ length: weeks }, (_, week) => h("tr", {}, Array.from({ length: 7 }, (__, at) => {
    const day = begin + week * 7 + at;
    return monthOf(day) === month ? cellOf(days.get(day), day, day === chosen, day === today, choose) : h("td", { class: "out" });
  })));
  return [
    h("div", { class: "row month" }, page(-1, "Previous"), h("h3", { id: "month", "aria-live": "polite" }, monthWords(month)), page(1, "Next"),
      month === monthOf(today) ? null : h("button", { type: "button", onclick: () => choose(today, true) }, "Today")),
    h("table", { class: "calendar", role: "grid", "aria-labelledby": "month", onkeydown },
      h("thead", {}, h("tr", {}, WEEK.map((words) => h("th", { scope: "col", abbr: words }, h("span", { "aria-hidden": "true", class: "narrow" }, words.slice(0, 2)), h("span", { class: "wider" }, words))))),
      h("tbody", {}, rows)),
  ];
}

function summaryOf(events) {
  if (!events) return "nothing";
  const parts = [];
  if (events.versions.length) parts.push(counted(events.versions.length, "version", "versions"));
  if (events.going.length) parts.push(`${number(events.going.length)} let go`);
  parts.push(...events.due.map(([words, ns]) => `${words.toLowerCase()} at ${clockOf(ns)} UTC`));
  return parts.join(", ");
}

function chipsOf(events) {
  const chips = [
    ...events.due.map(([words, ns]) => ["due", `${clockOf(ns)} ${words.toLowerCase()}`]),
    ...events.versions.map((one) => [one.kept_as.length ? "kept" : "goes", `${clockOf(one.time_ns)} ${plain(one.name || one.kept_as.at(-1) || "goes")}`]),
    ...events.going.filter((one) => !events.versions.includes(one)).map((one) => ["goes", `− ${plain(titleOf(one))}`]),
  ];
  const shown = chips.length > CHIPS_MAX + 1 ? chips.slice(0, CHIPS_MAX) : chips;
  return h("span", { class: "chips wider", "aria-hidden": "true" }, shown.map(([kind, words]) => h("span", { class: `chip ${kind}` }, words)),
    chips.length > shown.length ? h("span", { class: "soft" }, `and ${number(chips.length - shown.length)} more`) : null);
}

function countsOf(events) {
  const count = (kind, sign, value) => (value ? h("span", { class: `chip ${kind}` }, `${sign}${value > 1 ? number(value) : ""}`) : null);
  return h("span", { class: "chips narrow", "aria-hidden": "true" }, count("kept", "●", events.versions.length), count("goes", "−", events.going.length), count("due", "◷", events.due.length));
}

function cellOf(events, day, isChosen, isToday, choose) {
  return h("td", { "aria-selected": String(isChosen), class: isToday ? "today" : null }, h("button", {
    type: "button", tabindex: isChosen ? "0" : "-1", "aria-label": `${dayWords(day)}${isToday ? ", today" : ""}: ${summaryOf(events)}`,
    "aria-current": isToday ? "date" : null, onclick: () => choose(day, true),
  }, h("span", { class: "date" }, dateOf(day).getUTCDate()), events ? [chipsOf(events), countsOf(events)] : null));
}

function legend() {
  return h("p", { class: "row small soft" }, [["kept", "●", "a version"], ["goes", "−", "let go"], ["due", "◷", "due by the schedule"]].map(([kind, sign, words]) =>
    h("span", { class: "key" }, h("span", { class: `chip ${kind}`, "aria-hidden": "true" }, sign), words)), h("span", {}, "Days are UTC’s, as the policy counts them."));
}

// -- the day -------------------------------------------------------------------------------------

function dayParts(events, day, found, view) {
  const parts = [h("h3", { id: "chosen-day" }, dayWords(day))];
  if (!events) return [...parts, h("p", { class: "soft" }, "No version is of this day, and none is let go on it.")];
  parts.push(...events.due.map(([words, ns]) => h("p", {}, `${words} by the schedule: ${clockOf(ns)} UTC.`)));
  const list = (words, ones) => (ones.length ? [h("h4", {}, words), h("ul", { class: "plain" }, ones.map((one) => versionOf(one, found, view)))] : []);
  return [...parts, ...list("Versions of this day", events.versions), ...list("Let go on this day", events.going)];
}

function versionOf(one, found, view) {
  const to = app.link(["v", view.agent, view.volume, "versions"], { version: one.key });
  return h("li", {}, h("a", { href: to }, one.name ? name(one.name) : titleOf(one)), " of ", moment(one.time_ns), " ",
    one.kept_as.map((words) => [pill(words === "protected" || words === "named" ? "good" : "", words), " "]), h("span", { class: "soft" }, ...fateOf(one, found)));
}

function fateOf(one, found) {
  const pruning = one.prune_ns === null ? [] : [", deleted by the pruning of ", moment(one.prune_ns)];
  if (!one.kept_as.length) return ["no rule keeps it: it goes with the next pruning", ...(one.prune_ns === null ? [] : [", ", moment(one.prune_ns)])];
  if (one.let_go_ns !== null) return ["let go on ", moment(one.let_go_ns), ...pruning];
  if (one.is_for_good) return ["stays, whatever is made after it"];
  return found.looked_until_ns === null ? [] : [`not let go before ${shortDay(found.looked_until_ns)}`];
}
