// What was served and what is held back: quality by slice, drift, the gate, dead letters.

import { binName, histograms, interval } from "/web/dashboard-charts.js";
import { choice, el, empty, figure, isNumber, number, plural, section, table, versionName, when } from "/web/dashboard-parts.js";

const METRICS = {
  ctr: ["CTR", "Share of the shown that got the label."],
  auc: ["AUC", "How often what got the label was scored above what did not; a coin says 0.5.", 0.5],
  normalised_entropy: ["NE", "Log loss over that of always saying the mean rate: below 1 the score says something.", 1],
  calibration: ["Calibration", "What was predicted over what came; 1 is right.", 1],
  coec: ["COEC", "Clicks over those that the position alone would have got; above 1 is better than that.", 1],
};
const MODELS = { live: "Live model", candidate: "Newest candidate", popularity: "Popularity" };
const BESIDE = new Set(["low", "high", "tested"]); // of a progressive figure, not figures of their own
const [QUIET, ACTIVE] = [0.1, 0.25];

// ---- Quality and drift

export function quality(app) {
  const progressive = section("Found among the first 50", { testid: "progressive", aside: el("span", { class: "soft" }, "before it was learnt") });
  const labels = el("div", { class: "choice", role: "group", "aria-label": "Label" });
  const slices = section("What was served, by slice", { wide: true, testid: "slices", aside: labels });
  const drift = section("Drift", { wide: true, testid: "drift" });
  const ids = section("New ids and labels", { testid: "arrivals" });
  const root = el("div", { class: "grid" }, slices.root, progressive.root, ids.root, drift.root);
  root.dataset.page = "quality";
  let chosen = app.query.get("label"), last = null;

  function draw({ quality: judged, drift: drifting }) {
    last = judged ?? last;
    if (judged) {
      const known = judged.error ? [] : [...new Set(judged.rows.map((row) => row.label))];
      if (!known.includes(chosen)) chosen = known[0] ?? chosen;
      if (labels.dataset.known !== known.join()) {
        labels.dataset.known = known.join();
        choice(labels, known.length > 1 ? known.map((one) => [one, one.replace(/^label_/, "")]) : [], chosen, (label) => { chosen = label; app.remember("label", label); draw({ quality: last }); });
      }
      progressive.draw(judged.error ? judged : judged.progressive, drawProgressive);
      slices.draw(judged.error ? judged : [judged.rows, chosen], ([rows, label]) => drawSlices(rows, label));
    }
    drift.draw(drifting?.error ? drifting : drifting?.features, drawDrift);
    ids.draw(drifting, drawArrivals);
  }

  return { root, draw, needs: () => ({ quality: ["/v1/monitor/quality", 4], drift: ["/v1/monitor/drift", 4] }) };
}

function drawProgressive(progressive) {
  const rows = Object.entries(MODELS).filter(([of]) => progressive[of]);
  if (!rows.some(([of]) => Object.values(progressive[of]).some(isNumber))) return empty("No model has been asked about enough of what came yet.");
  const names = [...new Set(rows.flatMap(([of]) => Object.keys(progressive[of])))].filter((name) => !BESIDE.has(name));
  const ends = rows.flatMap(([of]) => [...names, "low", "high"].map((name) => progressive[of][name])).filter(isNumber);
  const scale = [0, Math.max(...ends)];
  const asked = progressive.live?.tested;
  return [table(["", ...names], rows.map(([of, title]) => [title, ...names.map((name, column) => {
    const from = `monitor/quality#progressive.${of}`;
    const shown = progressive[of];
    return el("span", { class: "measured" }, figure(`${from}.${name}`, shown[name], "ratio"),
      interval({ value: shown[name], low: column ? null : shown.low, high: column ? null : shown.high }, scale),
      column || !isNumber(shown.low) ? "" : el("small", { class: "bounds" }, figure(`${from}.low`, shown.low, "ratio"), "–", figure(`${from}.high`, shown.high, "ratio")));
  })])), isNumber(asked) ? el("p", { class: "soft" }, "Of ", figure("monitor/quality#progressive.live.tested", asked), " likes lately.") : null];
}

function drawSlices(rows, label) {
  const indexed = rows.map((row, index) => ({ ...row, index })).filter((row) => row.label === label);
  if (!indexed.length) return empty("No impressions have met their labels yet. A click is known at once; that nothing came of an impression, only when the joiner's window has ended. Figures appear here by themselves.");
  const scales = Object.fromEntries(Object.entries(METRICS).map(([name, [, , reference]]) => {
    const ends = indexed.flatMap((row) => [row[name]?.low, row[name]?.high, row[name]?.value]).filter(isNumber);
    return [name, [Math.min(...ends, reference ?? Infinity), Math.max(...ends, reference ?? -Infinity)]];
  }));
  const heads = ["slice", "known", ...Object.values(METRICS).map(([title]) => title)];
  const body = indexed.map((row, place) => el("tr", { class: row.slice === indexed[place - 1]?.slice ? null : "first" },
    el("th", { scope: "row", "data-head": "slice" }, el("small", {}, row.slice === "all" ? "" : row.slice), " ", row.slice === "all" ? "everything" : row.slice === "version" ? versionName(row.of) : row.of),
    el("td", { "data-head": "known" }, figure(`monitor/quality#rows.${row.index}.known`, row.known)),
    ...Object.entries(METRICS).map(([name, [title, , reference]]) => el("td", { "data-head": title, class: "measured" }, ...measured(row, name, scales[name], reference ?? null)))));
  return [
    el("div", { class: "table" }, el("table", { class: "cards slices" },
      el("thead", {}, el("tr", {}, heads.map((head) => el("th", { scope: "col", title: Object.values(METRICS).find(([title]) => title === head)?.[1] }, head)))), el("tbody", {}, body))),
    el("dl", { class: "notes" }, Object.values(METRICS).map(([title, text]) => el("div", {}, el("dt", {}, title), el("dd", {}, text)))),
    el("p", { class: "soft" }, "Whiskers are 95 % bounds; all rows of a column share one scale, and the dotted line is the value to compare with."),
  ];
}

function measured(row, name, scale, reference) {
  const found = row[name];
  if (!found || !isNumber(found.value)) return [el("span", { class: "soft" }, "–")];
  const from = `monitor/quality#rows.${row.index}.${name}`;
  const unit = "ratio";
  return [figure(`${from}.value`, found.value, unit), interval(found, scale, reference),
    el("small", { class: "bounds" }, figure(`${from}.low`, found.low, unit), "–", figure(`${from}.high`, found.high, unit))];
}

function drawDrift(features) {
  if (!features.length) return empty("Not enough samples have come to compare with what was before.");
  const order = features.map((one, index) => ({ ...one, index })).sort((a, b) => b.active - a.active || (b.psi ?? -1) - (a.psi ?? -1));
  return [
    el("p", { class: "soft" }, `Population stability index of each feature: below ${QUIET} nothing moved, above ${ACTIVE} it is another population.`),
    el("div", { class: "drifts" }, order.map((one) => el("details", { "data-feature": one.feature, open: one.active },
      el("summary", { "data-key": `drift ${one.feature}` }, el("span", { class: "name" }, one.feature), bar(one.psi), figure(`monitor/drift#features.${one.index}.psi`, one.psi, "ratio"),
        one.active ? el("span", { class: "state bad" }, "drifts since ", when(one.since)) : standing(one.psi)),
      one.reference?.length ? [histograms(one.feature, one.reference, one.now ?? [], one.edges ?? []),
        el("p", { class: "soft ends" }, el("span", {}, binName(one.edges ?? [], 0, one.reference.length)), el("span", {}, el("i", { class: "swatch before" }), " before ", el("i", { class: "swatch stayed" }), " now"), el("span", {}, binName(one.edges ?? [], one.reference.length - 1, one.reference.length)))]
        : el("p", { class: "empty" }, "Its bins are not told.")))),
  ];
}

function standing(psi) {
  if (!isNumber(psi)) return el("span", { class: "soft" }, "too few yet");
  if (psi > ACTIVE) return el("span", { class: "state warn", title: "not for long enough to be sure" }, "moves");
  return psi > QUIET ? el("span", { class: "state warn" }, "moves a little") : el("span", { class: "state good" }, "steady");
}

function bar(psi) {
  const node = el("span", { class: "psi", "aria-hidden": "true" });
  const fill = el("i", { class: psi > ACTIVE ? "bad" : psi > QUIET ? "warn" : "good" });
  fill.style.width = `${Math.min(100, (100 * (psi ?? 0)) / (2 * ACTIVE))}%`;
  node.append(fill);
  return node;
}

function drawArrivals({ new_ids: ids, label_rates: rates }) {
  const entries = [
    ...Object.entries(ids ?? {}).map(([kind, value]) => [`New ${kind} ids`, figure(`monitor/drift#new_ids.${kind}`, value, "1/min")]),
    ...Object.entries(rates ?? {}).map(([label, value]) => [`Rate of ${label.replace(/^label_/, "")}`, figure(`monitor/drift#label_rates.${label}`, value, "ratio")]),
  ];
  if (!entries.length) return empty("No samples have come yet.");
  return el("dl", { class: "facts" }, entries.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}

// ---- The gate

const MODES = { hold: "holds back what fails", shadow: "only says what it would hold back", off: "is off: every version is served" };

export function gate() {
  const state = section("State", { testid: "gate-state" });
  const checks = section("Checks", { testid: "gate-checks" });
  const history = section("History", { wide: true, testid: "gate-history" });
  const root = el("div", { class: "grid" }, state.root, checks.root, history.root);

  function draw({ gate: found, monitor }) {
    if (found === undefined) return;
    const bad = found.error !== undefined;
    state.draw(bad ? found : { ...found, history: null, versions: monitor?.versions }, drawState);
    checks.draw(bad ? found : found.checks, drawChecks);
    history.draw(bad ? found : found.history, drawHistory);
  }

  return { root, draw, needs: () => ({ gate: ["/v1/monitor/gate", 2] }) };
}

function drawState({ mode, holds, reason, versions }) {
  const last = versions?.last_good;
  return [
    el("p", { class: `gate ${holds ? "bad" : "good"}`, "data-testid": "gate-holds", "data-holds": `${holds}` }, holds ? "Holds a version back" : "Open"),
    holds && reason ? el("p", { class: "reason" }, reason) : null,
    el("p", { class: "soft" }, `It ${MODES[mode] ?? `is in the mode ${mode}`}.`),
    holds ? el("p", {}, "Replicas stay at ", last ? versionName(last) : "the last good version", ". It frees itself after some good versions in a row; until then:") : el("p", {}, "By hand:"),
    el("ul", { class: "commands" }, [["headrace versions list", "what is served, held, stored"], ["headrace versions pin NAME", "stay at one, whatever the gate says"], ["headrace versions rollback", "go back to the one before"]]
      .map(([command, text]) => el("li", {}, el("code", {}, command), " ", el("span", { class: "soft" }, text)))),
  ];
}

function drawChecks(checks) {
  const entries = Object.entries(checks);
  if (!entries.length) return empty("No version has been checked yet.");
  return el("dl", { class: "facts checks" }, entries.map(([name, value]) => el("div", {}, el("dt", {}, name.replaceAll("_", " ")), el("dd", {}, ...checked(name, value)))));
}

function checked(name, value) {
  const from = `monitor/gate#checks.${name}`;
  const verdict = (ok) => el("span", { class: `state ${ok ? "good" : "bad"}` }, ok ? "passes" : "fails");
  if (typeof value === "boolean") return [verdict(value)];
  if (isNumber(value)) return [figure(from, value)];
  if (value === null) return [el("span", { class: "soft" }, "not looked at yet")];
  if (typeof value !== "object") return [`${value}`];
  return Object.entries(value).flatMap(([key, inner]) => {
    if (typeof inner === "boolean") return [verdict(inner), " "];
    if (isNumber(inner)) return [el("span", { class: "pair" }, el("small", {}, key.replaceAll("_", " ")), " ", figure(`${from}.${key}`, inner)), " "];
    return inner === null ? [] : [el("span", { class: "soft" }, typeof inner === "string" ? inner : JSON.stringify(inner)), " "];
  });
}

function drawHistory(history) {
  if (!history.length) return empty("Nothing has been held back since this began to watch.");
  return table(["at", "version", "verdict", "reason"], history.map((one) => [
    when(one.at), versionName(one.version), el("span", { class: `state ${one.verdict === "held" ? "bad" : "good"}` }, one.verdict), one.reason ?? "",
  ]), { class: "cards" });
}

// ---- Dead letters

export function deadLetters() {
  const list = section("Refused events", { wide: true, testid: "letters", aside: el("span", { class: "soft" }) });
  const root = el("div", {}, list.root);

  function draw({ letters }) {
    if (letters === undefined) return;
    const waiting = list.root.querySelector(".caption span");
    if (!letters.error) waiting.replaceChildren(figure("monitor/dead-letters#waiting", letters.waiting), " waiting");
    list.draw(letters, drawLetters);
  }

  return { root, draw, needs: () => ({ letters: ["/v1/monitor/dead-letters?limit=50", 4] }) };
}

function drawLetters({ letters, waiting }) {
  if (!letters.length) return empty("No event has been refused: the dead letters are empty.");
  const reasons = new Map();
  for (const one of letters) reasons.set(one.reason, (reasons.get(one.reason) ?? 0) + 1);
  const most = [...reasons].sort((a, b) => b[1] - a[1]).slice(0, 3);
  return [
    el("p", { class: "soft" }, `Of the newest ${number(letters.length)} of ${number(waiting)}: `, most.map(([reason, count], index) => [index ? "; " : "", el("b", {}, `${count} ×`), ` ${reason}`]).flat()),
    el("ul", { class: "letters" }, letters.map((one) => el("li", { "data-testid": "letter" },
      el("p", {}, when(one.at), " ", el("b", {}, one.reason)),
      el("pre", {}, one.excerpt),
      el("p", { class: "soft" }, el("code", {}, `${one.topic}/${one.partition}/${one.offset}`))))),
    el("p", { class: "soft" }, "Once the cause is mended, ", el("code", {}, "headrace dead-letters redrive"), ` sends them again (${plural(waiting, "event")}).`),
  ];
}
