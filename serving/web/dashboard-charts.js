// Pictures: lines over time, ranges, scatters, histograms. Each can be read without seeing it.

import { clock, duration, el, isNumber, number, quantity, shape, shortClock } from "/web/dashboard-parts.js";

const HEIGHT = 148;
const MARGIN = { left: 54, right: 8, top: 8, bottom: 20 };
const MOST_POINTS = 240;
const SHORT_UNITS = new Set(["s", "ms", "1/s", "bytes"]); // those that have room beside an axis
export const LINES = ["one", "two", "three", "four", "five"];

const charts = new Set(); // those on the page: they share one crosshair

const extent = (values) => {
  const known = values.filter(isNumber);
  return known.length ? [Math.min(...known), Math.max(...known)] : null;
};

// Where a scale may end so that its marks are round numbers.
function ticks(low, high, count = 3) {
  const rough = (high - low || Math.abs(high) || 1) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((one) => one * power).find((one) => one >= rough * 0.999);
  const first = Math.floor(low / step + 1e-9), last = Math.ceil(high / step - 1e-9);
  return Array.from({ length: last - first + 1 }, (_, index) => Number(((first + index) * step).toPrecision(12)));
}

// What the marks of a scale of seconds count: minutes, hours or days where it is long.
function marked(high, unit) {
  if (unit !== "s" || high < 100) return 1;
  return high < 6000 ? 60 : high < 172_800 ? 3600 : 86_400;
}

// At most as many points as can be told apart: of each stretch the mean, the lowest and the highest.
function thinned(t, values) {
  const stretch = Math.max(1, Math.ceil(t.length / MOST_POINTS));
  const points = [];
  for (let begin = 0; begin < t.length; begin += stretch) {
    const known = values.slice(begin, begin + stretch).filter(isNumber);
    const middle = t[Math.min(t.length - 1, begin + (stretch >> 1))];
    points.push(known.length
      ? { t: middle, mean: known.reduce((sum, one) => sum + one, 0) / known.length, low: Math.min(...known), high: Math.max(...known) }
      : { t: middle, mean: null });
  }
  return points;
}

function paths(points, x, y) {
  let line = "", band = "", run = [];
  const close = () => {
    if (run.length === 1) line += `M${x(run[0].t) - 1},${y(run[0].mean)}h2`;
    else if (run.length) line += run.map((one, index) => `${index ? "L" : "M"}${x(one.t).toFixed(1)},${y(one.mean).toFixed(1)}`).join("");
    if (run.length > 1) {
      const there = run.map((one) => `${x(one.t).toFixed(1)},${y(one.high).toFixed(1)}`);
      const back = run.map((one) => `${x(one.t).toFixed(1)},${y(one.low).toFixed(1)}`).reverse();
      band += `M${[...there, ...back].join("L")}Z`;
    }
    run = [];
  };
  for (const point of points) if (isNumber(point.mean)) run.push(point); else close();
  close();
  return { line, band };
}

// Lines over time. `lines`: [{name, title}] of one unit; draw(t, series, marks) as often as one likes.
export function chart(title, unit, lines) {
  const svg = shape("svg", { class: "chart", height: HEIGHT, role: "slider", tabindex: 0, "aria-label": title, "aria-valuemin": 0 });
  const legend = el("ul", { class: "legend" });
  const text = el("p", { class: "range soft" });
  const root = el("figure", { class: "line", "data-chart": lines.map((one) => one.name).join(",") },
    el("figcaption", {}, el("h3", {}, title), legend), svg, text);
  const self = { root, svg, title, names: lines.map((one) => one.name), at: null, point, draw };
  let t = [], series = {}, marks = [], x = () => 0, width = 0, cross = null;

  function draw(newT, newSeries, newMarks = []) {
    [t, series, marks] = [newT, newSeries, newMarks];
    paint();
  }

  function paint() {
    width = svg.clientWidth || 320;
    const columns = lines.map((one) => series[one.name] ?? []);
    const range = extent(columns.flat());
    svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    svg.setAttribute("aria-valuemax", Math.max(0, t.length - 1));
    if (!range) {
      svg.replaceChildren(shape("text", { x: width / 2, y: HEIGHT / 2, "text-anchor": "middle", class: "none" }, "no figures yet"));
      text.textContent = "";
      drawLegend(null);
      return;
    }
    const zero = range[0] >= 0 && range[0] < 0.6 * range[1];
    const one = marked(range[1], unit);
    const steps = ticks((zero ? 0 : range[0]) / one, (range[1] === 0 && zero ? 1 : range[1]) / one).map((step) => step * one);
    const [low, high] = [steps[0], steps.at(-1)];
    const [from, to] = [t[0], t.at(-1)];
    x = (at) => MARGIN.left + ((at - from) / (to - from || 1)) * (width - MARGIN.left - MARGIN.right);
    const y = (value) => MARGIN.top + (1 - (value - low) / (high - low || 1)) * (HEIGHT - MARGIN.top - MARGIN.bottom);
    const nodes = steps.flatMap((step) => [
      shape("line", { class: step === 0 ? "ground" : "rule", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(step), y2: y(step) }),
      shape("text", { x: MARGIN.left - 6, y: y(step) + 4, "text-anchor": "end" }, step === 0 ? "0" : quantity(step, SHORT_UNITS.has(unit) ? unit : "")),
    ]);
    const times = width > 420 ? [from, (from + to) / 2, to] : [from, to];
    times.forEach((at, index) => nodes.push(shape("text", {
      x: x(at), y: HEIGHT - 4, "text-anchor": index === 0 ? "start" : index === times.length - 1 ? "end" : "middle",
    }, index === times.length - 1 ? "now" : shortClock(at))));
    for (const mark of marks.filter((one) => one.at > from && one.at <= to)) {
      nodes.push(shape("line", { class: "mark", x1: x(mark.at), x2: x(mark.at), y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom },
        shape("title", {}, `${mark.text}, since ${clock(mark.at)}`)));
    }
    columns.forEach((values, index) => {
      const { line, band } = paths(thinned(t, values), x, y);
      nodes.push(shape("path", { class: `band ${LINES[index]}`, d: band }), shape("path", { class: `stroke ${LINES[index]}`, d: line }));
    });
    cross = shape("line", { class: "cross", y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom, visibility: "hidden" });
    svg.replaceChildren(...nodes, cross);
    const over = duration(to - from);
    text.textContent = `lowest ${quantity(range[0], unit)}, highest ${quantity(range[1], unit)} in ${over}`;
    point(self.at);
  }

  function values(index) {
    return lines.map((one) => `${lines.length > 1 ? `${one.title} ` : ""}${quantity(series[one.name]?.[index], unit)}`).join(", ");
  }

  function drawLegend(index) {
    legend.replaceChildren(...lines.map((one, line) => {
      const value = series[one.name]?.[index ?? t.length - 1];
      return el("li", { class: LINES[line] }, lines.length > 1 ? el("span", {}, one.title) : "",
        el("b", { "data-line": one.name, "data-value": isNumber(value) ? value : null }, quantity(value, unit)));
    }), ...(index === null ? [] : [el("li", { class: "at" }, clock(t[index]))]));
  }

  // The crosshair at a time, or none: then the newest values stand.
  function point(at) {
    self.at = at;
    if (!t.length || !cross) return drawLegend(null);
    const index = at === null ? null : nearest(at);
    cross.setAttribute("visibility", index === null ? "hidden" : "visible");
    if (index !== null) for (const end of ["x1", "x2"]) cross.setAttribute(end, x(t[index]));
    drawLegend(index);
    const read = index ?? t.length - 1;
    svg.setAttribute("aria-valuenow", read);
    svg.setAttribute("aria-valuetext", `${clock(t[read])}: ${values(read)}; ${text.textContent}`);
  }

  function nearest(at) {
    let best = 0;
    for (let index = 1; index < t.length; index++) if (Math.abs(t[index] - at) < Math.abs(t[best] - at)) best = index;
    return best;
  }

  const pointAll = (at) => { for (const one of charts) if (one.svg.isConnected) one.point(at); else charts.delete(one); };
  svg.addEventListener("pointermove", ({ offsetX }) => {
    if (t.length < 2) return;
    const share = (offsetX - MARGIN.left) / (width - MARGIN.left - MARGIN.right);
    pointAll(t[0] + Math.min(1, Math.max(0, share)) * (t.at(-1) - t[0]));
  });
  svg.addEventListener("pointerleave", () => pointAll(null));
  svg.addEventListener("blur", () => pointAll(null));
  svg.addEventListener("keydown", (event) => {
    const now = self.at === null ? t.length - 1 : nearest(self.at);
    const leap = Math.max(1, Math.round(t.length / 60));
    const to = { ArrowLeft: now - leap, ArrowRight: now + leap, Home: 0, End: t.length - 1 }[event.key];
    if (to === undefined || !t.length) return;
    event.preventDefault();
    pointAll(t[Math.min(t.length - 1, Math.max(0, to))]);
  });
  new ResizeObserver(() => { if (t.length && svg.clientWidth !== width) paint(); }).observe(svg);
  charts.add(self);
  return self;
}

// A line so small that it only says which way things go.
export function spark(values, label, unit = "", kind = "one") {
  const range = extent(values);
  const svg = shape("svg", { class: "spark", viewBox: "0 0 120 30", preserveAspectRatio: "none", role: "img" });
  if (!range) { svg.setAttribute("aria-label", `${label}: no figures yet`); return svg; }
  const points = thinned(values.map((_, index) => index), values);
  const low = Math.min(range[0], range[0] > 0.6 * range[1] ? range[0] : 0);
  const { line } = paths(points, (at) => (at / Math.max(1, values.length - 1)) * 120, (value) => 28 - ((value - low) / (range[1] - low || 1)) * 26);
  svg.append(shape("path", { class: `stroke ${kind}`, d: line }));
  svg.setAttribute("aria-label", `${label}: now ${quantity(values.filter(isNumber).at(-1), unit)}, lowest ${quantity(range[0], unit)}, highest ${quantity(range[1], unit)}`);
  return svg;
}

// A value with its bounds as a whisker on a scale that all rows of a table share.
export function interval({ value, low, high }, [from, to], reference = null) {
  const place = (one) => 4 + Math.min(1, Math.max(0, (one - from) / (to - from || 1))) * 112;
  const svg = shape("svg", { class: "interval", viewBox: "0 0 120 16", preserveAspectRatio: "none", "aria-hidden": "true" });
  if (reference !== null && reference >= from && reference <= to) svg.append(shape("line", { class: "reference", x1: place(reference), x2: place(reference), y1: 0, y2: 16 }));
  if (isNumber(low) && isNumber(high)) svg.append(shape("line", { class: "whisker", x1: place(low), x2: Math.max(place(high), place(low) + 1), y1: 8, y2: 8 }));
  if (isNumber(value)) svg.append(shape("line", { class: "dot", x1: place(value), x2: place(value), y1: 3, y2: 13 }));
  return svg;
}

// Two histograms over the same bins, side by side.
export function histograms(feature, reference, now, edges) {
  const bins = Math.max(reference.length, now.length);
  const most = Math.max(...reference.filter(isNumber), ...now.filter(isNumber), 1e-9);
  const wide = 320 / Math.max(1, bins);
  const svg = shape("svg", { class: "histograms", viewBox: "0 0 320 84", role: "img", preserveAspectRatio: "none",
    "aria-label": `${feature}: ${Array.from({ length: bins }, (_, bin) => `${binName(edges, bin, bins)}: ${number(reference[bin])} before, ${number(now[bin])} now`).join("; ")}` });
  for (let bin = 0; bin < bins; bin++) {
    const bar = (value, kind, side) => shape("rect", {
      class: kind, x: bin * wide + wide * (0.1 + 0.4 * side), width: wide * 0.38,
      y: 82 - (value / most) * 78, height: Math.max(0.5, (value / most) * 78) },
    shape("title", {}, `${binName(edges, bin, bins)}: ${number(100 * value)} % ${side ? "now" : "before"}`));
    svg.append(bar(reference[bin] ?? 0, "before", 0), bar(now[bin] ?? 0, "now", 1));
  }
  return svg;
}

// Edges lie between the bins, or there is a name for each of them.
export function binName(edges, bin, bins) {
  const said = (edge) => (isNumber(edge) ? number(edge) : `${edge}`);
  if (edges.length >= bins && !isNumber(edges[0])) return said(edges[bin]);
  if (edges.length === bins + 1) return `${said(edges[bin])} to ${said(edges[bin + 1])}`;
  if (edges.length === bins - 1) {
    if (bin === 0) return `below ${said(edges[0])}`;
    return bin === bins - 1 ? `from ${said(edges[bin - 1])}` : `${said(edges[bin - 1])} to ${said(edges[bin])}`;
  }
  return edges[bin] === undefined ? `bin ${bin + 1}` : said(edges[bin]);
}

// Items as points; those that were there before have a line from where they were.
export function scatter(item, now, then, onPoint) {
  const places = [item, ...now, ...then].filter((one) => isNumber(one.x) && isNumber(one.y));
  const [width, height, edge] = [560, 380, 26];
  const svg = shape("svg", { class: "scatter", viewBox: `0 0 ${width} ${height}`, role: "img" });
  if (!places.length) return svg;
  const [left, right] = extent(places.map((one) => one.x));
  const [low, high] = extent(places.map((one) => one.y));
  const x = (one) => edge + ((one.x - left) / (right - left || 1)) * (width - 2 * edge);
  const y = (one) => height - edge - ((one.y - low) / (high - low || 1)) * (height - 2 * edge);
  const before = new Map(then.map((one) => [one.item_id, one]));
  const known = (one) => isNumber(one.x) && isNumber(one.y);
  const newer = new Set(now.map((one) => one.item_id));
  const group = (kind, one, ...marks) => {
    const node = shape("g", { class: `spot ${kind}`, "data-spot": one.item_id }, ...marks, shape("title", {}, one.title ?? one.item_id));
    node.addEventListener("pointerenter", () => onPoint(one.item_id));
    node.addEventListener("pointerleave", () => onPoint(null));
    return node;
  };
  for (const one of then.filter(known)) {
    if (!newer.has(one.item_id)) svg.append(group("left", one, shape("circle", { cx: x(one), cy: y(one), r: 5 })));
  }
  const rank = new Map(now.map((one, index) => [one.item_id, index + 1]));
  for (const one of now.filter(known)) {
    const was = before.get(one.item_id);
    const marks = [];
    if (was && known(was)) {
      marks.push(shape("line", { x1: x(was), y1: y(was), x2: x(one), y2: y(one) }), shape("circle", { class: "was", cx: x(was), cy: y(was), r: 3 }));
    }
    marks.push(shape("circle", { cx: x(one), cy: y(one), r: 6 }), shape("text", { x: x(one) + 9, y: y(one) - 6 }, `${rank.get(one.item_id)}`));
    svg.append(group(was || !then.length ? "stayed" : "came", one, ...marks));
  }
  if (known(item)) svg.append(shape("path", { class: "self", d: `M${x(item)},${y(item) - 9}l9,9l-9,9l-9,-9z` }, shape("title", {}, item.title ?? item.item_id)));
  svg.setAttribute("aria-label", `${now.length} neighbours in two directions of the model's space; the lists beside it say the same in words`);
  return svg;
}

// A grid of shades: one tab stop, arrow keys inside, every value in the line below.
export function heatmap({ rows, columns, values }, said) {
  const [low, high] = extent(values.flat()) ?? [0, 1];
  const name = (one) => one.title ?? one.item_id;
  const readout = el("p", { class: "readout", "data-testid": "readout" }, said);
  const cells = values.map((line, row) => line.map((value, column) => {
    const cell = el("td", {
      tabindex: row || column ? -1 : 0, "data-value": isNumber(value) ? value : null,
      "aria-label": `${name(rows[row])} on ${name(columns[column])}: ${number(value)}`,
    });
    cell.style.setProperty("--heat", `${isNumber(value) ? Math.round(((value - low) / (high - low || 1)) * 100) : 0}%`);
    const read = () => { readout.replaceChildren(el("b", {}, number(value)), ` ${name(rows[row])} → ${name(columns[column])}`); };
    cell.addEventListener("pointerenter", read);
    cell.addEventListener("focus", read);
    cell.addEventListener("keydown", (event) => {
      const to = { ArrowRight: [row, column + 1], ArrowLeft: [row, column - 1], ArrowDown: [row + 1, column], ArrowUp: [row - 1, column] }[event.key];
      const next = to && cells[to[0]]?.[to[1]];
      if (!next) return;
      event.preventDefault();
      cell.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
    return cell;
  }));
  const head = el("tr", {}, el("td", {}), columns.map((one, column) => el("th", { scope: "col", title: name(one) }, `${column + 1}`)));
  const lines = cells.map((line, row) => el("tr", {}, el("th", { scope: "row", title: name(rows[row]) }, el("span", {}, name(rows[row]))), line));
  const key = el("ol", { class: "columns" }, columns.map((one) => el("li", {}, name(one))));
  return el("div", { class: "heat" },
    el("div", {}, el("table", { class: "heatmap" }, el("thead", {}, head), el("tbody", {}, lines)), readout,
      el("p", { class: "soft scale" }, number(low), el("i", {}), number(high))), key);
}
