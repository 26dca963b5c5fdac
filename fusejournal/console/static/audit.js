// Who did what on the page.

import { get } from "./api.js";
import { h, name, time } from "./dom.js";

const OWN = new Set(["time_ns", "user", "host", "what"]);

export async function auditView(place) {
  const { lines } = await get("/api/audit", {}, place.signal);
  place.replaceChildren(h("h1", {}, "Audit"), h("div", { class: "card" },
    h("div", { class: "scroll" }, h("table", { class: "stack" },
      h("thead", {}, h("tr", {}, ["Time", "User", "From", "What", "Details"].map((words) => h("th", { scope: "col" }, words)))),
      h("tbody", {}, lines.map((line) => h("tr", { class: "rows" }, h("td", { class: "time" }, time(line.time_ns)),
        h("td", {}, name(line.user)), h("td", {}, line.host), h("td", {}, line.what),
        h("td", { class: "wide mono" }, Object.entries(line).filter(([key]) => !OWN.has(key)).map(([key, value]) => [h("span", { class: "soft" }, `${key} `), name(typeof value === "string" ? value : JSON.stringify(value)), " "]))))))),
    h("p", { class: "soft small" }, "The newest 500 lines; all are in audit.jsonl in the console's directory.")));
}
