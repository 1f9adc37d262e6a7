// Events becoming answers, as it happens.

import { announce, clock, duration, el, empty, plural, redraw, section, versionName } from "/web/dashboard-parts.js";

const STAGES = { event: "event", sample: "sample", version: "version", answer: "answer" };
const MOST = 200;
const SHOWN = 60;

export function live(app) {
  const user = el("input", { id: "live-user", type: "search", placeholder: "all users", autocomplete: "off", spellcheck: "false", maxlength: 256, value: app.query.get("user") ?? "" });
  const pause = el("button", { type: "button", class: "quiet", "data-testid": "pause", "aria-pressed": "false" }, "Pause");
  const waiting = el("span", { class: "soft", role: "status" });
  const list = el("ol", { class: "stream", "data-testid": "stream" });
  const way = section("The way of one request", { testid: "way" });
  const note = el("div", {}, el("p", { class: "waiting" }, "Waiting for the first step …"));
  const root = el("div", { class: "live" },
    el("div", { class: "controls" }, el("label", { for: "live-user" }, "Only of user"), user, pause, waiting),
    el("div", { class: "split" }, el("section", { "aria-label": "Steps, newest first" }, note, list), way.root));
  let steps = [], next = 0, paused = false, chosen = null, later = []; // what came while paused

  user.addEventListener("input", () => { app.remember("user", user.value.trim()); show(); });
  pause.addEventListener("click", toggle);

  function toggle() {
    paused = !paused;
    [steps, later] = [[...steps, ...later].slice(-MOST), []];
    pause.setAttribute("aria-pressed", `${paused}`);
    pause.textContent = paused ? "Go on" : "Pause";
    announce(paused ? "Paused" : "Going on");
    show();
  }

  const mine = () => steps.filter((one) => !user.value.trim() || one.user_id === user.value.trim() || one.stage === "version");

  function show() {
    waiting.textContent = later.length ? `${plural(later.length, "step")} since` : "";
    const shown = mine().slice(-SHOWN).reverse();
    const somebody = shown.some((one) => one.stage !== "version");
    redraw(note, [shown.length > 0, somebody, user.value.trim()], () => {
      if (!shown.length) return empty("Nothing has happened since this page was opened. Steps appear here as events come and answers are made.");
      return somebody || !user.value.trim() ? [] : empty(`Nothing of the user “${user.value.trim()}” in the last ${MOST} steps.`);
    });
    redraw(list, [shown, chosen], () => shown.map(line));
    way.root.classList.toggle("unused", chosen === null);
    way.draw({ chosen, steps: chosen ? onTheWay() : [] }, drawWay);
  }

  function line(step) {
    const highlighted = chosen !== null && (step.request_id ?? `step ${step.seq}`) === chosen;
    return el("li", { class: highlighted ? "chosen" : null, "data-stage": step.stage, "data-seq": step.seq },
      el("button", { type: "button", "data-key": `${step.seq}`, "aria-pressed": `${highlighted}`, onclick: () => { chosen = highlighted ? null : step.request_id ?? `step ${step.seq}`; show(); } },
        el("time", {}, clock(step.at)), el("b", { class: "stage" }, STAGES[step.stage] ?? step.stage),
        el("span", { class: "what" }, ...words(step))));
  }

  function words(step) {
    const parts = [];
    if (step.user_id) parts.push(el("span", { class: "user" }, step.user_id), " ");
    if (step.text) parts.push(el("span", {}, step.stage === "answer" ? `is shown ${step.text}` : step.text), " ");
    const item = step.title ?? step.item_id;
    if (item && !step.text?.includes(item)) parts.push(el("cite", {}, item), " ");
    if (step.version) parts.push(versionName(step.version));
    return parts;
  }

  // What names the request; and what a version is in it: the one that the answer was made with.
  function onTheWay() {
    const own = steps.filter((one) => (one.request_id ?? `step ${one.seq}`) === chosen);
    // A sample may not name its request: then it is that of the same user and item.
    const done = new Set(own.filter((one) => one.stage === "event").map((one) => `${one.user_id} ${one.item_id}`));
    own.push(...steps.filter((one) => one.stage === "sample" && !one.request_id && one.at >= own[0]?.at && done.has(`${one.user_id} ${one.item_id}`)));
    const used = new Set(own.map((one) => one.version).filter(Boolean));
    const made = steps.filter((one) => one.stage === "version" && used.has(one.version) && !own.includes(one));
    return [...made, ...own].sort((a, b) => a.at - b.at || a.seq - b.seq);
  }

  function drawWay({ chosen: name, steps: found }) {
    if (!name) return empty("Choose a step to see the whole way: the version that an answer was made with, what was shown, what the user did, and the sample that the model learns from.");
    if (!found.length) return empty("Its steps are too long ago to be kept here.");
    const first = found[0].at;
    return [
      el("p", { class: "soft" }, name.startsWith("step ") ? "This step names no request." : el("code", {}, name)),
      el("ol", { class: "waypoints" }, found.map((one) => el("li", { "data-stage": one.stage },
        el("b", { class: "stage" }, STAGES[one.stage] ?? one.stage), el("span", { class: "soft" }, one.at === first ? clock(one.at) : `+ ${duration(one.at - first)}`),
        el("p", {}, ...words(one))))),
    ];
  }

  function draw({ stream }) {
    if (stream === undefined) return;
    if (stream.error !== undefined) return void redraw(note, stream.error, () => empty(stream.error));
    if (stream.next < next) [steps, later] = [[], []]; // the service began anew
    next = stream.next;
    const known = new Set([...steps, ...later].map((one) => one.seq));
    const fresh = stream.steps.filter((one) => !known.has(one.seq));
    if (paused) later = [...later, ...fresh].slice(-MOST); else steps = [...steps, ...fresh].slice(-MOST);
    show();
  }

  const needs = () => ({ stream: [`/v1/monitor/stream?after=${next}`, 0] });
  return { root, draw, needs, period_s: 1, keys: { p: ["pause", toggle], "/": ["user", () => user.select()] } };
}
