// One page for each floor: its figures as they stand, and over time.

import { chart } from "/web/dashboard-charts.js";
import { sentenceCase } from "/web/dashboard-overview.js";
import { el, empty, figure, isNumber, section, table } from "/web/dashboard-parts.js";

const MOST_LINES = 5;
const MANY = 10; // so many stand in columns beside each other

export function floor(name) {
  return (app) => {
    const figures = section("Now", { testid: "figures" });
    const over = el("div", { class: "charts", "data-testid": "charts" }, el("p", { class: "waiting" }, "Waiting for figures …"));
    const root = el("div", {}, figures.root, el("section", { "aria-label": "Over time" }, el("div", { class: "caption" }, el("h2", {}, "Over time"),
      el("span", { class: "soft keys" }, el("kbd", {}, "←"), " ", el("kbd", {}, "→"), " move along a line that has the focus")), over));
    let charts = null, declared = "", silent = null;

    const mine = () => app.declared.filter((one) => one.floor === name);

    function draw({ monitor, series }) {
      if (monitor?.floors) figures.draw(monitor.floors[name] ?? [], (shown) => drawFigures(shown, name));
      if (series === undefined) return;
      if (series.error !== undefined) { over.replaceChildren(empty(series.error)); charts = null; return; }
      if (declared !== JSON.stringify(mine())) {
        declared = JSON.stringify(mine());
        charts = families(mine()).map(({ title, unit, lines }) => chart(title, unit, lines));
        silent = el("p", { class: "soft silent" });
        over.replaceChildren(...charts.map((one) => one.root), silent);
      }
      const marks = (monitor?.alerts ?? []).map((one) => ({ at: one.since, text: sentenceCase(one.name) }));
      const known = (one) => one.names.some((wanted) => series.series[wanted]?.some(isNumber));
      for (const one of charts ?? []) {
        one.root.hidden = !known(one); // before it is drawn: its width counts
        if (known(one)) one.draw(series.t, series.series, marks);
      }
      const without = (charts ?? []).filter((one) => !known(one));
      silent.textContent = without.length ? `no figures yet: ${without.map((one) => one.title).join("; ")}` : "";
    }

    return { root, draw, needs: () => ({ series: [app.series(mine().map((one) => one.name)), 0] }), spans: true };
  };
}

// Those of the floor as a whole are tiles; those of its parts ("lag.joiner.events.0") stand in lists.
function drawFigures(shown, floorName) {
  if (!shown.length) return empty("No figure is kept of this floor yet.");
  const placed = shown.map((one, index) => ({ ...one, node: () => figure(`monitor#floors.${floorName}.${index}.value`, one.value, one.unit) }));
  const parts = new Map();
  for (const one of placed.filter(({ name }) => name.includes("."))) {
    const family = one.name.split(".")[0];
    parts.set(family, [...(parts.get(family) ?? []), one]);
  }
  const whole = placed.filter(({ name }) => !name.includes(".") || parts.get(name.split(".")[0]).length === 1);
  for (const [family, members] of parts) if (members.length === 1) parts.delete(family);
  const lists = [...parts.values()].map((members) => {
    const grid = matrix(members);
    if (grid) return grid;
    const common = commonWords(members.map((one) => one.title));
    return el("div", { class: members.length > MANY ? "many" : null }, el("h3", {}, common.replace(/[\s,:·(]+$/, "")),
      el("dl", { class: "facts" }, members.map((one) => el("div", {}, el("dt", {}, one.title.slice(common.length)), el("dd", {}, one.node())))));
  });
  return [
    el("ul", { class: "tiles" }, whole.map((one) => el("li", {}, el("h3", {}, one.title), one.node()))),
    lists.length ? el("div", { class: "parts" }, lists) : null,
  ];
}

// Parts that two words name each, several of both: a table reads better than a list.
function matrix(members) {
  const words = members.map((one) => one.name.split(".").slice(1));
  const [rows, columns] = [[...new Set(words.map(([row]) => row))], [...new Set(words.map((one) => one[1]))]];
  if (words.some((one) => one.length !== 2) || rows.length < 2 || columns.length < 3) return null;
  const at = new Map(members.map((one) => [one.name.split(".").slice(1).join("."), one]));
  const title = commonWords(members.map((one) => one.title)).replace(/[\s,:·(]+$/, "");
  return el("div", { class: "matrix" }, el("h3", {}, title),
    table(["", ...columns], rows.map((row) => [row, ...columns.map((column) => at.get(`${row}.${column}`)?.node() ?? "–")]), { class: "cards" }));
}

// Series that belong in one picture: percentiles of one thing; else those of one unit with one word
// before the first "_".
function families(declared) {
  const found = new Map();
  for (const one of declared) {
    const stem = one.name.replace(/_p\d+(?=_|$)/, "");
    let key = `${one.unit} ${stem === one.name ? one.name.split("_")[0] : stem}`;
    while ((found.get(key)?.length ?? 0) >= MOST_LINES) key += "+";
    found.set(key, [...(found.get(key) ?? []), one]);
  }
  return [...found.values()].map((lines) => {
    const common = lines.length > 1 ? commonWords(lines.map((one) => one.title)) : "";
    const rest = (text) => text.slice(common.length).replace(/^[\s,:·(]+/, "").replace(/\)$/, "") || text;
    return {
      title: lines.length === 1 ? lines[0].title : common.replace(/[\s,:·(]+$/, "").replace(/( (of|in|by|for|the|a))+$/, "") || lines.map((one) => one.title).join(", "),
      unit: lines[0].unit,
      lines: lines.map((one) => ({ name: one.name, title: lines.length > 1 ? rest(one.title) : one.title })),
    };
  });
}

function commonWords(titles) {
  const words = titles.map((title) => title.split(/(?<=\s)/));
  let common = "";
  for (let index = 0; words.every((one) => one[index] !== undefined && one[index].trim() === words[0][index].trim()); index++) common += words[0][index];
  return common;
}
