// A chart of entries over time: stacked bars; dragging over it chooses a time. (By keyboard, the
// fields of the filter do the same.)

import { h, s, clock, number } from "./dom.js";

const WIDTH = 1000;
const HEIGHT = 150;
const BOTTOM = 18;

// bars: for each step an object {series: count}; names: the series, in order.
export function chart({ from, step, bars, names }, choose) {
  const tops = bars.map((bar) => names.reduce((sum, one) => sum + (bar[one] ?? 0), 0));
  const most = Math.max(1, ...tops);
  const wide = WIDTH / Math.max(1, bars.length);
  const high = HEIGHT - BOTTOM;
  const label = `Entries over time: ${number(tops.reduce((sum, one) => sum + one, 0))} from ${clock(from)} to ${clock(from + step * bars.length)}, at most ${number(most)} in one step`;
  const svg = s("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", class: "chart", role: "img", "aria-label": label });
  bars.forEach((bar, at) => {
    let top = high;
    names.forEach((one, series) => {
      const tall = ((bar[one] ?? 0) / most) * (high - 4);
      if (!tall) return;
      top -= tall;
      const rect = s("rect", { x: at * wide + wide * 0.06, width: Math.max(0.6, wide * 0.88), y: top, height: tall, class: `f${Math.min(series, 5)}` });
      rect.append(s("title", {}, `${clock(from + at * step)}: ${number(bar[one])} ${one}`));
      svg.append(rect);
    });
  });
  svg.append(s("line", { x1: 0, x2: WIDTH, y1: high, y2: high, class: "base" }));
  const chosen = s("rect", { y: 0, height: high, class: "chosen", width: 0 });
  svg.append(chosen);
  drag(svg, chosen, (left, right) => {
    const first = Math.floor(left * bars.length), last = Math.ceil(right * bars.length);
    choose(from + first * step, from + Math.max(last, first + 1) * step - 1);
  });
  const ends = h("div", { class: "head small soft" }, h("span", {}, clock(from)),
    h("span", {}, clock(from + step * bars.length)));
  return h("div", {}, svg, ends);
}

function drag(svg, chosen, done) {
  let begun = null;
  const share = (event) => {
    const box = svg.getBoundingClientRect();
    return Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
  };
  const draw = (now) => {
    chosen.setAttribute("x", Math.min(begun, now) * WIDTH);
    chosen.setAttribute("width", Math.abs(now - begun) * WIDTH);
  };
  svg.addEventListener("pointerdown", (event) => {
    begun = share(event);
    svg.setPointerCapture(event.pointerId);
  });
  svg.addEventListener("pointermove", (event) => { if (begun !== null) draw(share(event)); });
  svg.addEventListener("pointerup", (event) => {
    if (begun === null) return;
    const [first, last] = [begun, share(event)].sort((one, other) => one - other);
    begun = null;
    chosen.setAttribute("width", 0);
    if (last - first > 0.004) done(first, last);
  });
}
