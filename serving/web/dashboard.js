// The dashboard: asks /v1/monitor again and again, and shows one page of it at a time.
// Everything that came from the service reaches the page as text, never as markup.

import { floor } from "/web/dashboard-floors.js";
import { items } from "/web/dashboard-items.js";
import { deadLetters, gate, quality } from "/web/dashboard-judged.js";
import { live } from "/web/dashboard-live.js";
import { byName, isGrave, overview, sentenceCase } from "/web/dashboard-overview.js";
import { $, announce, choice, clock, el, plural } from "/web/dashboard-parts.js";
import { markdown } from "/web/dashboard-runbook.js";

const PAGES = [
  { id: "overview", title: "Overview", digit: "1", letter: "o", make: overview },
  { id: "live", title: "Live", digit: "2", letter: "l", make: live },
  { id: "streaming", title: "Streaming", digit: "3", letter: "s", make: floor("streaming") },
  { id: "features", title: "Features", digit: "4", letter: "f", make: floor("features") },
  { id: "trainers", title: "Trainers", digit: "5", letter: "t", make: floor("trainers") },
  { id: "serving", title: "Serving", digit: "6", letter: "v", make: floor("serving") },
  { id: "items", title: "Items", digit: "7", letter: "i", make: items },
  { id: "quality", title: "Quality", digit: "8", letter: "q", make: quality },
  { id: "gate", title: "Gate", digit: "9", letter: "g", make: gate },
  { id: "dead-letters", title: "Dead letters", digit: "0", letter: "d", make: deadLetters },
];
const SPANS = [[300, "5 min"], [900, "15 min"], [3600, "1 h"]];
const THEMES = { auto: "Theme: as the system", light: "Theme: light", dark: "Theme: dark" };
const [KEY, THEME, SPAN] = ["headrace.key", "headrace.theme", "headrace.span"];
const TIMEOUT_MS = 8000;
const G_MS = 1500; // within it a letter after "g" names a page

// ---- What this browser remembers; where storage is refused the page works without

const stored = (storage, name) => { try { return storage().getItem(name); } catch { return null; } };
const store = (storage, name, value) => { try { storage().setItem(name, value); } catch { /* this visit only */ } };
const tab = () => sessionStorage;
const browser = () => localStorage;

let key = stored(tab, KEY);
let theme = stored(browser, THEME) in THEMES ? stored(browser, THEME) : "auto";
let span = SPANS.some(([seconds]) => `${seconds}` === stored(browser, SPAN)) ? Number(stored(browser, SPAN)) : 900;

// ---- The service

// Never throws. `status` is 0 if it could not be reached.
async function ask(path) {
  try {
    const response = await fetch(path, {
      headers: key ? { "X-Api-Key": key } : {}, cache: "no-store", signal: AbortSignal.timeout(TIMEOUT_MS),
    });
    const text = await response.text();
    let data = null;
    try { data = JSON.parse(text); } catch { data = text; }
    return { ok: response.ok, status: response.status, data };
  } catch {
    return { ok: false, status: 0, data: null };
  }
}

// ---- What pages may use

const app = {
  ask,
  declared: [], // the series there are; known with the first answer
  query: new URLSearchParams(), // of the page's address
  soon: () => tick(),
  series: (names) => `/v1/monitor/series?names=${encodeURIComponent(names.join(","))}&window_s=${span}`,
  // Keeps a choice in the address, so that it can be sent to somebody.
  remember(name, value) {
    if (value) app.query.set(name, value); else app.query.delete(name);
    const query = `${app.query}`;
    history.replaceState(null, "", `#${current.id}${query && `?${query}`}`);
  },
  runbookLink(address) {
    if (/^https?:\/\//.test(address)) return el("a", { class: "strong runbook", href: address, rel: "noreferrer" }, "What to do");
    const name = address.split("/").at(-1).replace(/\.md$/, "");
    return el("button", { type: "button", class: "strong runbook", "data-key": `runbook ${name}`, onclick: () => showRunbook(name) }, "What to do");
  },
};

// ---- One page at a time

let current = PAGES[0];
let page = null; // what the current one is made of
let asked = new Map(); // when which of its answers was asked for, and as what
let seen = {}; // its newest answers
let overviewSeen; // shown at once by whatever page is opened next

function route() {
  const [id, query] = location.hash.slice(1).split("?");
  const next = PAGES.find((one) => one.id === id) ?? PAGES[0];
  app.query = new URLSearchParams(query ?? "");
  if (page && next === current) return;
  current = next;
  [asked, seen] = [new Map(), { monitor: overviewSeen }];
  page = current.make(app);
  $("title").textContent = current.title;
  $("page").replaceChildren(page.root);
  $("window").hidden = !page.spans;
  for (const link of $("pages").querySelectorAll("a")) {
    if (link.hash === `#${current.id}`) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
  }
  openMenu(false);
  drawAlerts(overviewSeen);
  page.draw(seen);
  tick();
}

function openPage({ id }) {
  if (location.hash !== `#${id}`) location.hash = id;
  route(); // at once: the next key may be meant for that page
  $("main").focus({ preventScroll: true });
  scrollTo(0, 0);
}

// ---- Asking

let turn = 0; // the newest round of questions; older ones arriving late are dropped
let timer = 0;
let reachedAt = null;

async function tick() {
  clearTimeout(timer);
  if (document.hidden) return; // asked again when somebody looks
  const mine = ++turn, here = page;
  const due = Object.entries(here.needs()).filter(([name, [path, every_s]]) => {
    const last = asked.get(name);
    return !last || last.path !== path || performance.now() - last.at >= every_s * 1000;
  });
  const [first, ...rest] = await Promise.all([ask("/v1/monitor"), ...due.map(([, [path]]) => ask(path))]);
  if (mine !== turn || here !== page) return;
  take(first, due, rest);
  const period_s = here.period_s ?? Math.min(10, Math.max(1, overviewSeen?.period_s ?? 2));
  timer = setTimeout(tick, state() === "live" ? period_s * 1000 : 2000);
}

function take(first, due, rest) {
  if (first.status === 0 || first.status >= 500 || first.status === 429) return setState("gone", first.data?.error);
  if (first.status === 401 || first.status === 403) return setState("locked", first.data?.error);
  if (!first.ok) return setState("absent", first.data?.error ?? `It answered ${first.status}.`);
  reachedAt = Date.now() / 1000;
  setState("live");
  overviewSeen = first.data;
  const now = performance.now();
  const fresh = { monitor: overviewSeen };
  due.forEach(([name, [path]], index) => {
    const { ok, status, data } = rest[index];
    if (status === 0 || status >= 500) return; // what was drawn stays, and it is asked again
    asked.set(name, { path, at: now });
    fresh[name] = ok ? data : { error: data?.error ?? `It answered ${status}.` };
  });
  if (fresh.series?.declared) learnDeclared(fresh.series.declared);
  seen = { ...seen, ...fresh };
  drawAlerts(overviewSeen);
  page.draw({ ...fresh });
}

function learnDeclared(declared) {
  const first = JSON.stringify(app.declared) !== JSON.stringify(declared);
  app.declared = declared;
  if (first) setTimeout(tick); // now it is known what to ask for
}

// ---- How it stands with the service itself

const state = () => document.body.dataset.state;

function setState(now, why) {
  const before = state();
  document.body.dataset.state = now;
  $("lock").hidden = now !== "locked";
  $("absent").hidden = now !== "absent";
  $("page").hidden = now === "locked" || now === "absent";
  $("banner").hidden = now !== "gone";
  if (now === "gone") {
    const kept = reachedAt ? ` What you see is of ${clock(reachedAt)}.` : "";
    $("banner").textContent = `${why ? `The service says: ${why}.` : "The service does not answer."}${kept} Trying again.`;
  }
  if (now === "locked") $("lock-why").textContent = key ? `The key was not taken: ${why}.` : `${why ?? "The service wants to know who asks"}.`;
  if (now === "absent") $("absent-why").textContent = why;
  if (now === "locked" && before !== "locked") $("key").focus();
  const words = { loading: "connecting", live: `live, ${clock(reachedAt)}`, gone: "no answer", locked: "a key is needed", absent: "not watched" };
  $("pulse").replaceChildren(el("span", {}, words[now]));
  drawAlerts(overviewSeen);
}

function drawAlerts(monitor) {
  const alerts = state() === "live" || state() === "gone" ? byName(monitor?.alerts ?? []) : [];
  document.title = `${alerts.length ? `(${alerts.length}) ` : ""}${current.title} · Headrace`;
  const badge = $("pages").querySelector(".badge");
  const grave = alerts.some(isGrave);
  badge.classList.toggle("mild", !grave);
  $("wrong").classList.toggle("mild", !grave);
  badge.hidden = !alerts.length;
  badge.textContent = alerts.length;
  $("wrong").hidden = !alerts.length || current.id === "overview";
  const text = alerts.length ? `${plural(alerts.length, "alert")}: ${alerts.map((one) => sentenceCase(one.name) + (one.sentences.length > 1 ? ` (${one.sentences.length})` : "")).join(", ")}` : "";
  if ($("wrong").textContent !== text) $("wrong").textContent = text;
}

$("lock").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value.trim();
  $("key").value = "";
  store(tab, KEY, key);
  route();
  asked.clear();
  tick();
});

// ---- The runbook of an alert, without leaving the page

async function showRunbook(name) {
  $("runbook-title").textContent = sentenceCase(name.replaceAll("-", " ").replace(/^./, (letter) => letter.toUpperCase()));
  $("runbook-text").replaceChildren(el("p", { class: "waiting" }, "Fetching it …"));
  if (!$("runbook").open) $("runbook").showModal();
  const { ok, data } = await ask(`/dashboard/runbooks/${encodeURIComponent(name)}`);
  $("runbook-text").replaceChildren(...(ok && typeof data === "string" ? markdown(data, showRunbook) : [el("p", { class: "empty" }, data?.error ?? "The service does not answer: look at docs/runbooks of the source.")]));
}

// ---- Frame

function drawFrame() {
  $("pages").replaceChildren(...PAGES.map(({ id, title, digit }) => el("li", {}, el("a", { href: `#${id}` }, title,
    id === "overview" ? el("span", { class: "badge", hidden: true }) : null, el("kbd", { "aria-hidden": "true" }, digit)))));
  const rows = [...PAGES.map(({ title, digit, letter }) => [[digit, `g ${letter}`], title]),
    [["t"], "light, dark, or as the system"], [["/"], "search, where there is one"], [["p"], "pause the live stream"],
    [["←", "→"], "move along a chart, a heat map"], [["?"], "these keys"], [["Esc"], "close"]];
  $("keys-list").replaceChildren(...rows.map(([keys, text]) => el("tr", {}, el("td", {}, keys.map((one, index) => [index ? " " : "", el("kbd", {}, one)]).flat()), el("th", { scope: "row" }, text))));
  choice($("window"), SPANS, span, (seconds) => { span = seconds; store(browser, SPAN, `${seconds}`); tick(); });
  applyTheme();
}

function applyTheme() {
  if (theme === "auto") delete document.documentElement.dataset.theme; else document.documentElement.dataset.theme = theme;
  $("theme").textContent = THEMES[theme];
}

function turnTheme() {
  const names = Object.keys(THEMES);
  theme = names[(names.indexOf(theme) + 1) % names.length];
  store(browser, THEME, theme);
  applyTheme();
  announce(THEMES[theme]);
}

function openMenu(open) {
  document.body.classList.toggle("menu", open);
  $("menu").setAttribute("aria-expanded", `${open}`);
}

$("menu").addEventListener("click", () => openMenu(!document.body.classList.contains("menu")));
$("pages").addEventListener("click", () => openMenu(false)); // also for the page that is open
$("theme").addEventListener("click", turnTheme);
$("help").addEventListener("click", () => $("keys").showModal());
$("skip").addEventListener("click", () => $("main").focus());
for (const dialog of [$("keys"), $("runbook")]) dialog.addEventListener("click", ({ target }) => { if (target === dialog) dialog.close(); });

let gAt = -Infinity; // when "g" was pressed

document.addEventListener("keydown", (event) => {
  const { key: pressed, target } = event;
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (pressed === "Escape") { openMenu(false); if (target.matches("input")) target.blur(); return; }
  if (target.matches("input, textarea, select")) return;
  const act = (run) => { event.preventDefault(); run(); };
  const after = performance.now() - gAt < G_MS;
  gAt = -Infinity;
  const byLetter = after && PAGES.find((one) => one.letter === pressed);
  if (byLetter) return act(() => openPage(byLetter));
  const byDigit = PAGES.find((one) => one.digit === pressed);
  if (byDigit) return act(() => openPage(byDigit));
  if (pressed === "g") { gAt = performance.now(); return; }
  if (pressed === "?") return act(() => $("keys").showModal());
  if (pressed === "t") return act(turnTheme);
  const own = page.keys?.[pressed];
  if (own) act(own[1]);
});

document.addEventListener("visibilitychange", () => { if (document.hidden) clearTimeout(timer); else tick(); });
addEventListener("hashchange", route);

drawFrame();
route();
