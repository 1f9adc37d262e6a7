// The playground: rate a movie, see the recommendations follow, read how long that took.
// Everything that came from the service reaches the page as text, never as markup.

const CARDS = 12;
const POLL_MS = 25;
const GIVE_UP_MS = 10_000;
const KEPT_TIMES = 15;
const STORE = "headrace.playground";
const SOURCES = {
  popular: "popular with everyone",
  hot: "popular with people like you",
  interests: "of what you like",
  new: "new, and like what you like",
  content: "of the same kind",
};

const $ = (id) => document.getElementById(id);
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const narrow = matchMedia("(max-width: 859px)");
const sleep = (ms) => new Promise((done) => setTimeout(done, Math.max(0, ms)));
const notBefore = (a, b) => Date.parse(a) >= Date.parse(b); // false when either is missing

// ---- What this browser remembers: who you are, what you said, how long the clicks took.

function newcomer() {
  const bytes = crypto.getRandomValues(new Uint8Array(4));
  const id = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return { id: `visitor-${id}`, said: [], times: [] };
}

function load() {
  try {
    const kept = JSON.parse(localStorage.getItem(STORE));
    return kept?.id && Array.isArray(kept.said) && Array.isArray(kept.times) ? kept : newcomer();
  } catch {
    return newcomer(); // no storage, or not ours: this visit lives in memory only
  }
}

function save() {
  try {
    localStorage.setItem(STORE, JSON.stringify(me));
  } catch { /* storage full or refused: the page works without it */ }
}

let me = load();
const movies = new Map(); // every movie seen so far, by id
const cards = new Map(); // the card drawn for a movie, kept so that it can glide to its new place
let answer = null; // the newest answer of /v1/recommend
let shown = []; // its item ids, best first
let baseline = null; // the ids before the last click: what "up 2" is relative to
let latest = null; // the last click
let clicks = []; // the clicks still being timed

// ---- The service

// Never throws. `ok` is false when the service refused or could not be reached.
async function ask(path, body) {
  try {
    const response = await fetch(path, {
      method: body ? "POST" : "GET",
      headers: body ? { "Content-Type": "application/json" } : {},
      body: body && JSON.stringify(body),
      cache: "no-store",
      signal: AbortSignal.timeout(5000),
    });
    const data = await response.json();
    reachable(response.status < 500 || response.status === 503); // 503: alive, still starting
    return { ok: response.ok, status: response.status, data };
  } catch {
    reachable(false);
    return { ok: false, status: 0, data: {} };
  }
}

function reachable(yes) {
  $("banner").hidden = yes;
  if (!yes) drawState("down", "no answer");
}

// ---- Building blocks

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// "Shawshank Redemption, The (1994)" is filed that way; people read "The Shawshank Redemption".
function parts(item) {
  const [, filed, inTitle] = /^(.*?)\s*(?:\((\d{4})\))?$/.exec(item.title ?? `Movie ${item.item_id}`);
  const name = filed.replace(/^([^(]*), (The|An?|L[ae]s?|El|Los|Il|D[aei][rse])(?= \(|$)/, "$2 $1");
  return { name, year: item.attributes?.year ?? inTitle, genres: item.attributes?.genres ?? [] };
}

// There are no posters: each title gets its own colour, always the same.
function tile(item) {
  const { name, year } = parts(item);
  let hash = 0;
  for (const character of name) hash = (hash * 31 + character.codePointAt(0)) >>> 0;
  const words = name.replace(/\b(the|an?|of|and|in|to) /gi, "").match(/[\p{L}\p{N}'’]+/gu) ?? ["?"];
  const initials = words.slice(0, 2).map((word) => [...word][0].toUpperCase()).join("");
  const node = el("div", { class: "tile", "aria-hidden": "true" }, el("b", {}, initials), el("i", {}, `${year ?? ""}`));
  node.style.setProperty("--hue", hash % 360);
  return node;
}

const starsText = (count) => `${count} star${count === 1 ? "" : "s"}`;

// Five buttons, one tab stop: the arrow keys move inside (see the keyboard part).
function stars(item) {
  const group = el("div", { class: "stars", role: "group", "aria-label": `Rate ${parts(item).name}` });
  for (let value = 1; value <= 5; value++) {
    group.append(el("button", {
      type: "button", class: "star", "data-value": value, "data-testid": `rate-${value}`,
      "aria-label": starsText(value), title: starsText(value),
    }));
  }
  paintStars(group, item.item_id);
  return group;
}

function paintStars(group, id) {
  const given = me.said.find((entry) => entry.item.item_id === id)?.value ?? 0;
  for (const star of group.children) {
    const value = Number(star.dataset.value);
    star.classList.toggle("on", value <= given);
    star.setAttribute("aria-pressed", value === given);
    star.tabIndex = value === (given || 5) ? 0 : -1;
  }
}

// A movie as a list entry: the search results and the recommendations share it.
function movie(item, testid) {
  movies.set(item.item_id, item);
  const { name, year, genres } = parts(item);
  const more = el("button", {
    type: "button", class: "link more", "data-testid": "similar", "aria-label": `More like ${name}`,
  }, "More like this");
  return el("li", { class: "movie", tabindex: "-1", "data-testid": testid, "data-item-id": item.item_id },
    tile(item),
    el("div", { class: "about" },
      el("h4", { title: item.title ?? "" }, name),
      el("p", { class: "meta" }, [year, genres.slice(0, 3).join(", ")].filter(Boolean).join(" · ")),
      el("div", { class: "act" }, stars(item), more)));
}

// ---- Search results and "more like this" share one list

let listing = 0; // the newest request for the list; older ones arriving late are dropped
let listed = false;

async function list(path, caption, similar = false) {
  const mine = ++listing;
  const { ok, data } = await ask(path);
  if (mine !== listing) return;
  if (!ok) return void ($("caption").textContent = "This list could not be fetched");
  listed = true;
  const items = data.items ?? [];
  $("results").replaceChildren(...items.map((item) => movie(item, "result")));
  $("caption").textContent = caption(items);
  $("back").hidden = !similar;
  if (!similar) return;
  ($("results").firstElementChild ?? $("back")).focus({ preventScroll: true });
  $("find-title").scrollIntoView({ block: "nearest", behavior: calm.matches ? "auto" : "smooth" });
}

function search() {
  const text = $("search").value.trim();
  const limit = text ? 8 : narrow.matches ? 3 : 6; // on a phone the recommendations should be near
  return list(`/v1/items?search=${encodeURIComponent(text)}&limit=${limit}`, (items) => {
    if (!text) return "Popular right now";
    return items.length ? `Movies matching “${text}”` : `No movie matches “${text}”`;
  });
}

function similar(id) {
  const { name } = parts(movies.get(id));
  return list(`/v1/items/${encodeURIComponent(id)}/similar?k=6`,
    (items) => (items.length ? `More like ${name}` : `Nothing similar to ${name} is known yet`), true);
}

// ---- Recommendations

let asking = null; // one request in flight at a time

function refresh() {
  asking ??= fetchAnswer().finally(() => { asking = null; });
  return asking;
}

async function fetchAnswer() {
  const user = me.id;
  const explain = $("why").checked ? "&explain=true" : "";
  const { ok, status, data } = await ask(`/v1/recommend?user_id=${encodeURIComponent(user)}&k=${CARDS}${explain}`);
  if (user !== me.id) return; // the visitor started over meanwhile
  if (status === 503 && !answer) drawWaiting();
  if (!ok || !Array.isArray(data.items)) return;
  answer = data;
  shown = data.items.map((item) => item.item_id);
  drawAnswer();
}

function drawWaiting() {
  $("waiting").hidden = false;
  if (!$("recs").children.length) {
    $("recs").append(...Array.from({ length: 6 }, () => el("li", { class: "movie ghost", "aria-hidden": "true" })));
  }
}

function drawMove(node, id, rank) {
  const was = baseline?.indexOf(id) ?? rank;
  const steps = Math.abs(was - rank);
  const kind = was < 0 ? "new" : was > rank ? "up" : was < rank ? "down" : "";
  node.className = `move ${kind}`;
  node.textContent = { new: "new", up: `▲ ${steps}`, down: `▼ ${steps}` }[kind] ?? "";
  node.setAttribute("aria-label", { new: "new", up: `up ${steps}`, down: `down ${steps}` }[kind] ?? "");
}

function drawAnswer() {
  $("waiting").hidden = true;
  const nodes = answer.items.map((item, rank) => {
    const id = item.item_id;
    if (!cards.has(id)) {
      const card = movie(item, "recommendation");
      card.prepend(el("div", { class: "rank" }, el("b"), el("span", { role: "img" })));
      card.querySelector(".about").append(el("div", { class: "foot" }, el("span", { class: "source" }), card.querySelector(".more")));
      cards.set(id, card);
    }
    const card = cards.get(id);
    card.querySelector(".source").textContent = SOURCES[item.source] ?? "matched to you";
    card.querySelector(".rank b").textContent = rank + 1;
    drawMove(card.querySelector(".rank span"), id, rank);
    drawWhy(card, item);
    return card;
  });
  drawFormula();
  for (const id of cards.keys()) if (!shown.includes(id)) cards.delete(id);
  place(nodes);
  const known = answer.known_actions;
  $("recs-hint").textContent = known ? `from ${known} thing${known === 1 ? "" : "s"} you did` : "rate a movie to make this list yours";
}

// ---- Why an item stands where it stands

const PREDICTED = { share: "your next choice" }; // tasks have the names of what people do
const percent = (p) => (p >= 0.0995 ? `${Math.round(100 * p)}%` : p >= 0.001 ? `${(100 * p).toPrecision(2)}%` : p > 0 ? "<0.1%" : "0%");

// What each task predicts, how much that weighs, and who proposed the item.
function drawWhy(card, item) {
  card.querySelector(".why")?.remove();
  if (!item.why || !answer.fusion) return;
  const { tasks, shares, moved } = item.why;
  const most = Object.fromEntries(Object.keys(tasks).map((task) => [task, Math.max(...answer.items.map((one) => one.why?.tasks[task] ?? 0))]));
  const bars = Object.entries(tasks).map(([task, p]) => {
    const weight = answer.fusion.weights[task] ?? 0;
    const bar = el("i", {});
    bar.style.width = `${most[task] > 0 ? Math.max(1, (100 * p) / most[task]) : 0}%`;
    return el("div", { class: weight ? "" : "idle", "data-testid": `task-${task}`, title: weight ? `counts with weight ${weight}` : "has no weight in the order" },
      el("dt", {}, PREDICTED[task] ?? task), el("dd", {}, el("span", { class: "bar" }, bar), el("b", {}, percent(p))));
  });
  const total = Object.values(shares).reduce((sum, share) => sum + share, 0);
  const from = Object.entries(shares).sort(([, a], [, b]) => b - a)
    .map(([source, share]) => `${Math.round((100 * share) / total)}% ${SOURCES[source] ?? "matched to you"}`);
  const rules = Object.entries(moved).map(([rule, before]) => `${rule} moved it from ${before + 1}`);
  card.append(el("div", { class: "why", "data-testid": "why-card" }, el("dl", {}, ...bars),
    el("p", { class: "hint" }, [total > 0 ? from.join(", ") : "", ...rules].filter(Boolean).join("; "))));
}

// How the numbers on the cards become an order.
function drawFormula() {
  const { fusion, ranker } = answer;
  $("formula").hidden = !fusion;
  if (!fusion) return void $("formula").replaceChildren();
  const known = new Set(answer.items.flatMap((item) => Object.keys(item.why?.tasks ?? {})));
  const raised = (task, power) => [el("em", {}, PREDICTED[task] ?? task), power === 1 ? "" : el("sup", {}, `${power}`)];
  const terms = Object.entries(fusion.weights).filter(([task]) => known.has(task)).map(([task, weight]) =>
    (fusion.how === "product" ? raised(task, weight) : [`${weight} × `, ...raised(task, fusion.powers[task] ?? 1)]));
  const sign = fusion.how === "product" ? " × " : " + ";
  const score = terms.length ? terms.flatMap((term, index) => (index ? [sign, ...term] : term)) : raised("share", 1);
  $("formula").replaceChildren("The order is by ", ...score, ". ", ranker
    ? `What people will do was predicted by ${ranker}.`
    : "No ranker has learnt enough yet: it needs visitors who are shown something.");
}

// Puts the cards in their order; those that moved glide there, so that the eye can follow.
function place(nodes) {
  const box = $("recs");
  const old = [...box.children];
  if (old.length === nodes.length && old.every((node, index) => node === nodes[index])) return;
  const before = new Map(old.map((node) => [node, node.getBoundingClientRect()]));
  const focused = document.activeElement;
  const slot = old.findIndex((node) => node.contains(focused));
  box.replaceChildren(...nodes);
  box.classList.add("still");
  // Moving a node drops the focus. If its card left the list, go on at the card now in its place.
  if (slot >= 0) (focused.isConnected ? focused : nodes[slot] ?? $("recs-title")).focus({ preventScroll: true });
  if (calm.matches) return;
  for (const node of nodes) {
    const from = before.get(node);
    const to = node.getBoundingClientRect();
    const shift = from && `translate(${from.left - to.left}px, ${from.top - to.top}px)`;
    node.animate(from ? [{ transform: shift }, { transform: "none" }] : [{ opacity: 0 }, { opacity: 1 }],
      { duration: 280, easing: "ease-out" });
  }
}

// ---- A click, and how long it took to matter

async function rate(id, value) {
  const start = performance.now();
  const item = movies.get(id);
  const click = {
    start, user: me.id, at: null, before: shown.join(), done: false,
    text: `You gave ${parts(item).name} ${starsText(value)}.`, times: { answer: null, learnt: null },
  };
  latest = click;
  baseline = shown;
  drawPulse();
  const { ok, status, data } = await ask("/v1/events", { kind: "rate", user_id: click.user, item_id: id, value });
  if (click.user !== me.id) return;
  const accepted = ok && data.accepted?.[0];
  if (!accepted) {
    const reason = data.rejected?.[0]?.reason ?? data.error;
    click.done = true;
    click.text = `Your rating was not taken: ${reason ?? (status ? `the service said ${status}` : "the service does not answer")}.`;
    announce(click.text);
    return drawPulse();
  }
  click.at = accepted.at;
  me.said = [{ item, value }, ...me.said.filter((entry) => entry.item.item_id !== id)];
  me.times = [...me.times, click.times].slice(-KEPT_TIMES);
  drawSaid();
  clicks.push(click);
  watch();
}

let watching = false;

async function watch() {
  if (watching) return;
  watching = true;
  while (clicks.length) {
    const asked = performance.now();
    await refresh();
    const now = performance.now(); // the new cards are in the page
    if (answer) for (const click of clicks) settle(click, now);
    clicks = clicks.filter((click) => !click.done);
    drawPulse();
    await sleep(POLL_MS - (performance.now() - asked));
  }
  watching = false;
}

function settle(click, now) {
  const ms = Math.round(now - click.start);
  const learnt = notBefore(answer.watermark, click.at);
  // Other people's events change the answer too. A change is this click's only when the answer
  // was made knowing the click: in the visitor's features, or in the model itself.
  const known = answer.features_at ? notBefore(answer.features_at, click.at) : answer.known_actions !== 0;
  if (learnt) click.times.learnt ??= ms;
  if ((known || learnt) && shown.join() !== click.before) click.times.answer ??= ms;
  const both = click.times.answer !== null && click.times.learnt !== null;
  click.done = both || ms > GIVE_UP_MS;
  if (!click.done) return;
  save();
  if (!both) click.text += ` ${missing(click.times)}`;
  if (click === latest) announce(both
    ? `Your click changed the answer after ${click.times.answer} ms, and the model had learnt it after ${click.times.learnt} ms.`
    : click.text);
}

function missing({ answer: changed, learnt }) {
  const limit = `${GIVE_UP_MS / 1000} s`;
  if (changed !== null) return `The model had not learnt it after ${limit}; it will catch up.`;
  return learnt !== null ? `The model learnt it, but the same ${shown.length} movies stayed on top.` : `Nothing changed within ${limit}.`;
}

function announce(text) { $("live").textContent = text; }

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : Math.round((sorted[half - 1] + sorted[half]) / 2);
}

function drawPulse() {
  $("pulse").classList.toggle("used", latest !== null);
  $("note").textContent = latest?.text ?? "Rate any movie. This page times how long your click takes to change what you are shown.";
  for (const name of ["answer", "learnt"]) {
    const ms = latest?.times[name] ?? null;
    const running = latest !== null && ms === null && !latest.done;
    const number = $(name);
    number.classList.toggle("open", ms === null);
    if (ms === null) delete number.dataset.ms; else number.dataset.ms = ms;
    const value = ms ?? (running && !calm.matches ? Math.round(performance.now() - latest.start) : null);
    number.replaceChildren(value === null && running ? "…" : `${value ?? "–"} `, el("small", {}, "ms"));
    drawSpark(name);
  }
}

function drawSpark(name) {
  const values = me.times.map((times) => times[name]).filter((ms) => ms !== null);
  const [width, height, step] = [120, 26, 8];
  const svg = $(`${name}-spark`);
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const middle = median(values);
  const text = values.length < 2 ? "" : `median ${middle} ms of ${values.length} clicks`;
  $(`${name}-median`).textContent = text;
  svg.setAttribute("aria-label", text || "No history yet");
  const shape = (tag, attributes) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    return node;
  };
  const scale = (ms) => Math.max(2, (ms / Math.max(...values)) * (height - 2));
  const bars = (text ? values : []).map((ms, index) => shape("rect", {
    x: index * step, y: height - scale(ms), width: step - 3, height: scale(ms), rx: 1.5,
    class: index === values.length - 1 ? "last" : "",
  }));
  if (text) {
    const level = height - scale(middle);
    bars.push(shape("line", { x1: 0, x2: values.length * step, y1: level, y2: level }));
  }
  svg.replaceChildren(...bars);
}

function drawSaid() {
  save();
  $("said-empty").hidden = me.said.length > 0;
  $("said").replaceChildren(...me.said.map(({ item, value }) => {
    movies.set(item.item_id, item);
    return el("li", { "data-testid": "rated", "data-item-id": item.item_id, "data-value": value },
      el("span", {}, parts(item).name),
      el("span", { class: "given", role: "img", "aria-label": `${value} of 5 stars` },
        ...Array.from({ length: 5 }, (_, index) => el("i", { class: index < value ? "on" : "" }))));
  }));
  for (const group of document.querySelectorAll(".stars")) {
    paintStars(group, group.closest("[data-item-id]").dataset.itemId);
  }
}

// ---- The live strip

function drawState(state, text) {
  $("status").dataset.state = state;
  $("s-state").textContent = text;
}

function drawField(id, text, aside = "") {
  $(id).parentElement.hidden = text === null;
  if (text !== null) $(id).replaceChildren(text, ...(aside ? [" ", el("small", {}, aside)] : []));
}

function ago(ms) {
  const seconds = Math.round(ms / 1000);
  return seconds < 100 ? `${seconds} s` : seconds < 6000 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}

const DAY = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeZone: "UTC" });

// A version's age counts from when this page first saw it: its own stamp is only the run's start.
let version = { name: null, since: 0, first: true };

function drawStatus({ ready, replay, events_per_s: rate, metrics, version: name }) {
  drawState(ready === false ? "waiting" : "live", ready === false ? "starting" : "live");
  const part = replay?.total ? Math.min(1, replay.done / replay.total) : 0;
  const day = replay?.at && DAY.format(new Date(replay.at));
  const stage = replay?.finished ? "finished" : day || "starting";
  drawField("s-replay", replay ? stage : null, replay?.total ? `${Math.floor(part * 100)} %` : "");
  $("s-progress").value = part;
  drawField("s-rate", typeof rate === "number" ? Math.round(rate).toLocaleString("en") : null);
  const [ours, popular] = [metrics?.["recall@50"], metrics?.["popularity_recall@50"]];
  const rival = typeof popular === "number" ? `popularity ${popular.toFixed(3)}` : "";
  drawField("s-recall", typeof ours === "number" ? ours.toFixed(3) : null, rival);
  if (name && name !== version.name) version = { name, since: performance.now(), first: version.name === null };
  const age = `${version.first ? "over " : ""}${ago(performance.now() - version.since)} old`;
  drawField("s-model", name ? `#${name.split("/").at(-1)}` : null, age);
  $("s-model").title = name ?? "";
}

// Once a second: the strip; and from it everything that must start or recover by itself.
async function heartbeat() {
  for (let beat = 0; ; beat++, await sleep(1000)) {
    if (document.hidden) continue;
    const { ok, status, data } = await ask("/v1/status");
    if (ok) drawStatus(data);
    else if (status === 503) drawState("waiting", "starting");
    if (!answer && (!ok || data.ready === false)) drawWaiting();
    if (!ok) continue;
    if (!listed) search();
    // Nothing may move under the pointer or the keyboard, so an idle list is renewed only when left alone.
    const busy = clicks.length || $("recs").matches(":hover, :focus-within");
    const due = answer ? beat % 5 === 0 && !busy : data.ready !== false || beat % 3 === 0;
    if (due) refresh();
  }
}

// ---- Hands

function startOver() {
  me = newcomer();
  [answer, shown, baseline, latest, clicks] = [null, [], null, null, []];
  asking = null; // an answer still under way belongs to the earlier visitor and is dropped
  cards.clear();
  $("recs").replaceChildren();
  $("search").value = "";
  drawAll();
  search();
  refresh();
  announce("You are a new visitor.");
}

function drawAll() {
  $("visitor").textContent = me.id;
  drawSaid();
  drawPulse();
}

document.addEventListener("click", ({ target }) => {
  const id = target.closest("[data-item-id]")?.dataset.itemId;
  if (target.matches(".star")) rate(id, Number(target.dataset.value));
  else if (target.matches(".more")) similar(id);
});

// Pointing at a star means something only once the pointer moves (see "still" in the style sheet).
$("recs").addEventListener("pointermove", () => $("recs").classList.remove("still"));

function focusStar(row) { row.querySelector(".star[tabindex='0']")?.focus(); }

document.addEventListener("keydown", (event) => {
  const { key, target } = event;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = target === $("search");
  const row = target.closest(".movie");
  const act = (run) => { event.preventDefault(); run(); };
  if (key === "/" && !typing) return act(() => $("search").select());
  if (key === "Escape" && ($("results").contains(target) || !$("back").hidden)) return act(backToSearch);
  if (typing && (key === "ArrowDown" || key === "Enter")) return act(() => $("results").firstElementChild?.focus());
  if (typing || !row) return;
  if (key === "ArrowDown") return act(() => row.nextElementSibling?.focus());
  if (key === "ArrowUp") return act(() => (row.previousElementSibling ?? (row.parentElement === $("results") ? $("search") : row)).focus());
  if (/^[1-5]$/.test(key)) return act(() => rate(row.dataset.itemId, Number(key)));
  if (target === row && ["Enter", " ", "ArrowRight", "ArrowLeft"].includes(key)) return act(() => focusStar(row));
  if (target.matches(".star") && key === "ArrowRight") return act(() => target.nextElementSibling?.focus());
  if (target.matches(".star") && key === "ArrowLeft") return act(() => target.previousElementSibling?.focus());
});

function backToSearch() {
  $("search").focus();
  if (!$("back").hidden) search();
}

let typed = 0;
$("search").addEventListener("input", () => {
  clearTimeout(typed);
  typed = setTimeout(search, 120);
});
$("back").addEventListener("click", backToSearch);
$("new-visitor").addEventListener("click", startOver);
$("why").addEventListener("change", () => {
  try { localStorage.setItem(`${STORE}.why`, $("why").checked ? "yes" : ""); } catch { /* as in save */ }
  refresh();
});
try { $("why").checked = Boolean(localStorage.getItem(`${STORE}.why`)); } catch { /* as in load */ }

drawAll();
heartbeat();
