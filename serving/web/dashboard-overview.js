// The first page: is it fresh, right, cheap; what is wrong, since when, what to do.

import { spark } from "/web/dashboard-charts.js";
import { clock, duration, el, empty, figure, isNumber, plural, quantity, section, table, versionName, when } from "/web/dashboard-parts.js";

const HOPS = {
  logged: "in the log", stored: "in the feature store", joined: "joined into a sample", trained: "learnt",
  published: "published", served: "taken by a replica", answered: "in an answer",
};
const SLO_S = 1; // what p99 of the hop "served" promises
const [FASTEST_S, SLOWEST_S] = [0.001, 100];
const TRAFFIC = ["events_per_s", "samples_per_s", "answers_per_s", "answer_p50_ms", "answer_p99_ms", "degraded_per_s"];
const MOST_SENTENCES = 6;
const ON_OVERVIEW = [...TRAFFIC, "ctr"];

const isQuality = (name) => name === "ctr" || name === "auc" || name.startsWith("recall");
export const sentenceCase = (name) => name.replace(/^Headrace/, "").replace(/([a-z])([A-Z])/g, "$1 $2").replace(/ ([A-Z])(?=[a-z])/g, (_, letter) => ` ${letter.toLowerCase()}`);

// One alert may be active for several things: together they are one thing to look at.
export function byName(alerts) {
  const found = new Map();
  for (const one of alerts) found.set(one.name, [...(found.get(one.name) ?? []), one]);
  return [...found.values()].map((same) => ({ ...same[0], since: Math.min(...same.map((one) => one.since)), sentences: same.map((one) => one.sentence) }));
}

export const isGrave = (one) => one.severity === "critical" || one.severity === "page";

export function overview(app) {
  const verdict = el("div", { class: "verdict", "data-testid": "verdict" }, el("p", { class: "waiting" }, "Looking …"));
  const way = section("From an event to an answer", { wide: true, testid: "freshness", aside: el("span", { class: "soft" }, "last 5 minutes") });
  const versions = section("Versions", { testid: "versions" });
  const quality = section("Quality", { testid: "quality-tiles" });
  const traffic = section("Traffic", { wide: true, testid: "traffic" });
  const processes = section("Processes", { wide: true, testid: "processes", aside: el("span", { class: "soft" }) });
  const root = el("div", {}, verdict, el("div", { class: "grid" }, way.root, versions.root, traffic.root, quality.root, processes.root));
  root.querySelector(".grid").dataset.page = "overview";

  function draw({ monitor, series }) {
    if (monitor === undefined || monitor.error !== undefined) return;
    drawVerdict(verdict, monitor, app);
    way.draw(monitor.freshness, drawWay);
    versions.draw(monitor.versions, (shown) => drawVersions(shown, monitor.status));
    processes.root.querySelector(".caption span").textContent = monitor.processes.length ? `${monitor.processes.filter((one) => one.up).length} of ${monitor.processes.length} up` : "";
    processes.draw(monitor.processes, (shown) => drawProcesses(shown, monitor.at));
    if (series === undefined) return;
    if (series.error !== undefined) { traffic.draw(series); return quality.draw(series); }
    const tiles = (wanted) => series.declared.filter((one) => wanted(one.name) && one.name in series.series)
      .map((one) => ({ ...one, values: series.series[one.name] }));
    traffic.draw(tiles((name) => TRAFFIC.includes(name)), drawTiles);
    quality.draw(tiles(isQuality), drawTiles);
  }

  const needs = () => ({ series: [app.series(app.declared.map((one) => one.name).filter((name) => ON_OVERVIEW.includes(name) || isQuality(name))), 0] });
  return { root, draw, needs, spans: true };
}

function drawVerdict(node, { alerts: all, at, processes }, app) {
  const alerts = byName(all).sort((a, b) => isGrave(b) - isGrave(a) || a.since - b.since);
  const state = alerts.length ? (alerts.some(isGrave) ? "bad" : "warn") : "good";
  const line = alerts.length ? `${plural(alerts.length, "thing needs", "things need")} you` : "All well";
  const aside = alerts.length ? "" : processes.length
    ? `Nothing is wrong in ${plural(processes.length, "process", "processes")}, as of ${clock(at)}.` : `No process has told its figures yet, as of ${clock(at)}.`;
  const shown = JSON.stringify([alerts, aside.replace(/ as of.*/, "")]);
  node.dataset.state = state;
  if (node.dataset.shown === shown) { // only time went on: what is hovered or focused stays
    const line = node.querySelector(".as-of");
    if (line) line.textContent = aside;
    for (const one of node.querySelectorAll("[data-since]")) one.textContent = `for ${duration(Math.max(0, Math.round(at - one.dataset.since)))}`;
    return;
  }
  node.dataset.shown = shown;
  node.replaceChildren(
    el("p", { class: "line", role: "status" }, el("i", { class: "sign", "aria-hidden": "true" }, { good: "✓", warn: "!", bad: "✕" }[state]), el("span", {}, line),
      aside && el("small", { class: "as-of" }, aside)),
    ...(alerts.length ? [el("ul", { class: "alerts" }, alerts.map((one) => alert(one, at, app)))] : []));
}

function alert(one, at, app) {
  return el("li", { "data-severity": one.severity, "data-testid": "alert" },
    el("h3", {}, sentenceCase(one.name)),
    el("p", { class: "soft" }, `${one.severity} since `, when(one.since), ", ", el("span", { "data-since": one.since }, `for ${duration(Math.max(0, Math.round(at - one.since)))}`)),
    ...one.sentences.slice(0, MOST_SENTENCES).map((sentence) => el("p", { class: "sentence" }, sentence)),
    one.sentences.length > MOST_SENTENCES ? el("p", { class: "soft" }, `and ${plural(one.sentences.length - MOST_SENTENCES, "more thing", "more things")} like this`) : null,
    one.runbook ? app.runbookLink(one.runbook) : null);
}

const place = (seconds) => 100 * Math.min(1, Math.max(0, Math.log(seconds / FASTEST_S) / Math.log(SLOWEST_S / FASTEST_S)));

function drawWay(hops) {
  if (!hops.some((one) => one.count)) return empty("Nothing has come along yet. Post an event to /v1/events, or rate a movie in the ", el("a", { href: "/" }, "playground"), ".");
  const rows = hops.map((one, index) => {
    const late = one.hop === "served" && one.p99_s > SLO_S;
    const track = el("div", { class: "track", "aria-hidden": "true" });
    if (isNumber(one.p50_s) && isNumber(one.p99_s)) {
      const range = el("i", { class: "span" }), middle = el("i", { class: "p90" }), dot = el("i", { class: "p50" });
      range.style.left = `${place(one.p50_s)}%`;
      range.style.width = `${Math.max(0.5, place(one.p99_s) - place(one.p50_s))}%`;
      dot.style.left = `${place(one.p50_s)}%`;
      if (isNumber(one.p90_s)) { middle.style.left = `${place(one.p90_s)}%`; track.append(middle); }
      track.append(range, dot);
    }
    const at = (name, unit = "s") => figure(`monitor#freshness.${index}.${name}`, one[name], unit);
    return el("tr", { class: late ? "late" : null, "data-hop": one.hop },
      el("th", { scope: "row" }, HOPS[one.hop] ?? one.hop), el("td", { class: "way" }, track),
      el("td", { "data-head": "p50" }, at("p50_s")), el("td", { "data-head": "p90", class: "spare" }, at("p90_s")), el("td", { "data-head": "p99" }, at("p99_s"), late ? el("span", { class: "flag" }, " late") : ""),
      el("td", { "data-head": "count", class: "spare" }, at("count", "")));
  });
  const scale = el("div", { class: "marks", "aria-hidden": "true" }, [0.001, 0.01, 0.1, 1, 10].map((seconds) => {
    const mark = el("span", { class: seconds === SLO_S ? "slo" : null }, duration(seconds));
    mark.style.left = `${place(seconds)}%`;
    return mark;
  }));
  return el("table", { class: "hops" },
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "An event is"), el("td", { class: "way" }, scale), ...["p50", "p90", "p99", "count"].map((head) => el("th", { scope: "col", class: head === "p90" || head === "count" ? "spare" : null }, head === "count" ? "events" : head)))),
    el("tbody", {}, rows),
    el("caption", {}, "Each bar reaches from the median to the 99th percentile of the time since the event was logged; the stroke between is the 90th. An event is promised to reach every replica within a second."));
}

function drawVersions(versions, status) {
  const entries = [
    ["Served", versionName(versions.served)],
    ["Candidate", versionName(versions.candidate)],
    ["Last good", versionName(versions.last_good ?? (versions.held ? null : versions.candidate))], // said only while one is held
    ["Pinned", versions.pinned ? versionName(versions.pinned) : el("span", { class: "soft" }, "no")],
    ["Held back", versions.held ? versionName(versions.held) : el("span", { class: "soft" }, "no")],
  ];
  const age = status.newest_version?.age_s;
  return [
    el("dl", { class: "facts" }, entries.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", { "data-testid": `version-${name.toLowerCase().replace(" ", "-")}` }, value)))),
    versions.reason ? el("p", { class: "reason" }, versions.reason, " · ", el("a", { href: "#gate" }, "Gate")) : null,
    isNumber(age) ? el("p", { class: "soft" }, "The newest is ", figure("monitor#status.newest_version.age_s", age, "s"), " old.") : null,
    ...drawBeside(status),
  ];
}

// Models that are trained and served beside the one above.
function drawBeside(status) {
  const beside = Object.entries(status.beside ?? {});
  if (!beside.length) return [];
  return [
    el("h3", {}, "Beside it"),
    el("dl", { class: "facts" }, beside.map(([model, newest]) => el("div", {}, el("dt", {}, model), el("dd", { "data-testid": `beside-${model}` },
      versionName(status.served_beside?.[model]),
      newest?.held ? el("span", { class: "flag", title: newest.held }, " held back") : el("span", { class: "soft" }, newest ? `, ${quantity(newest.age_s, "s")} old${qualityOf(newest.metrics)}` : ", none yet"))))),
  ];
}

// What tells most of a model: of a retriever its recall, of a ranker how it tells what comes of showing something.
function qualityOf(metrics) {
  return Object.entries(metrics ?? {}).flatMap(([figure, value]) => {
    const task = /^recent_auc\[([^,\]]+)\]$/.exec(figure)?.[1];
    return figure === "recent_recall@50" ? [`, recall@50 ${value.toFixed(3)}`] : task ? [`, AUC of ${task} ${value.toFixed(3)}`] : [];
  }).join("");
}

function drawTiles(tiles) {
  if (!tiles.length) return empty("No such figures are kept yet.");
  return el("ul", { class: "tiles" }, tiles.map((one) => el("li", {},
    el("h3", {}, one.title), figure(`monitor/series#series.${one.name}.-1`, one.values.at(-1), one.unit),
    spark(one.values, one.title, one.unit, one.name.includes("popularity") ? "four" : "one"))));
}

function drawProcesses(processes, at) {
  if (!processes.length) return empty("No process has announced itself yet.");
  return table(["process", "state", "CPU", "memory", "up for", "address"], processes.map((one, index) => [
    `${one.process}${one.rank === null || one.rank === "" || one.rank === undefined ? "" : ` ${one.rank}`}`,
    el("span", { class: `state ${one.up ? "good" : "bad"}` }, one.up ? "up" : "no answer"),
    figure(`monitor#processes.${index}.cpu_cores`, one.cpu_cores, "cores"),
    figure(`monitor#processes.${index}.memory_bytes`, one.memory_bytes, "bytes"),
    isNumber(one.started) ? el("span", { title: clock(one.started) }, quantity(Math.max(1, Math.round(at - one.started)), "s")) : "–",
    el("code", {}, one.address),
  ]), { class: "cards" });
}
