// What every page is made of: nodes, numbers as people read them, sections with their states.
// Whatever came from the service reaches the page as text, never as markup.

export const $ = (id) => document.getElementById(id);

export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

export function shape(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== null) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

export function announce(text) { $("said").textContent = text; }

// ---- Numbers

export const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

// Three digits that matter.
export function number(value) {
  if (!isNumber(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1e6) return new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 }).format(value);
  if (size >= 100) return Math.round(value).toLocaleString("en");
  if (size > 0 && size < 0.001) return value.toExponential(1);
  return `${Number(value.toPrecision(3))}`;
}

export function duration(seconds) {
  const size = Math.abs(seconds);
  if (size === 0) return "0 s";
  if (size < 0.001) return `${number(seconds * 1e6)} µs`;
  if (size < 1) return `${number(seconds * 1e3)} ms`;
  if (size < 100) return `${number(seconds)} s`;
  if (size < 6000) return `${number(seconds / 60)} min`;
  return size < 172_800 ? `${number(seconds / 3600)} h` : `${number(seconds / 86_400)} d`;
}

function bytes(value) {
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (Math.abs(value) < 1000) return `${number(value)} ${unit}`;
    value /= 1000;
  }
  return `${number(value)} TB`;
}

export function quantity(value, unit = "") {
  if (!isNumber(value)) return "–";
  if (unit === "s") return duration(value);
  if (unit === "ms") return duration(value / 1000);
  if (unit === "bytes") return bytes(value);
  if (unit === "ratio") return value.toFixed(3);
  if (unit === "1/s" || unit === "1/min") return `${number(value)}${unit.slice(1)}`;
  if (unit === "records" && value === 1) return "1 record";
  return unit ? `${number(value)} ${unit}` : number(value);
}

// A number on the page. `from` says where it stands in what the service said, as
// "monitor#freshness.0.p99_s": so that a test, or a reader of the page's source, can compare.
export function figure(from, value, unit = "") {
  const attributes = { class: "figure", "data-figure": from, "data-unit": unit };
  if (isNumber(value)) attributes["data-value"] = value;
  else attributes.title = "not known yet";
  return el("span", attributes, quantity(value, unit));
}

// ---- Times

const CLOCK = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });
const SHORT_CLOCK = new Intl.DateTimeFormat("en-GB", { timeStyle: "short" });
const DAY = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });

export const clock = (at_s) => (isNumber(at_s) ? CLOCK.format(at_s * 1000) : "–");
export const shortClock = (at_s) => SHORT_CLOCK.format(at_s * 1000);

export function when(at_s) {
  if (!isNumber(at_s)) return el("span", {}, "–");
  return el("time", { datetime: new Date(at_s * 1000).toISOString(), title: DAY.format(at_s * 1000) }, clock(at_s));
}

// "two_tower/20261122T154322-2240/31" is version 31 to people; the whole name is under the pointer.
export function versionName(name) {
  if (!name) return el("span", { class: "soft" }, "none");
  const parts = `${name}`.split("/");
  return el("span", { class: "version", title: name }, parts.length < 2 ? name : `#${parts.at(-1)}`);
}

// ---- Redrawing without taking the ground from under a pointer or the keyboard

const drawn = new WeakMap();

// Builds the children of a node anew, but only if what they show has changed; what had the focus
// has it again if it is still there (by its data-key).
export function redraw(node, shown, build) {
  const text = JSON.stringify(shown);
  if (drawn.get(node) === text) return;
  drawn.set(node, text);
  const key = node.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  node.replaceChildren(...[build()].flat().filter((child) => child !== null && child !== undefined));
  if (key !== undefined) [...node.querySelectorAll("[data-key]")].find((one) => one.dataset.key === key)?.focus();
}

// A titled part of a page: waiting, refused with a sentence, or drawn.
export function section(title, { aside = null, wide = false, testid = null } = {}) {
  const body = el("div", { class: "body" }, el("p", { class: "waiting" }, "Waiting for figures …"));
  const heading = el("h2", {}, title);
  const root = el("section", { class: wide ? "wide" : null, "data-testid": testid, "aria-label": title },
    el("div", { class: "caption" }, heading, aside), body);
  const draw = (data, build) => {
    if (data === undefined) return; // nothing came yet, or it is kept
    if (data.error !== undefined) redraw(body, data.error, () => empty(data.error));
    else redraw(body, data, () => build(data));
  };
  return { root, body, heading, draw };
}

export function empty(...text) { return el("p", { class: "empty" }, ...text); }

export function table(heads, rows, attributes = {}) {
  return el("div", { class: "table" }, el("table", attributes,
    el("thead", {}, el("tr", {}, heads.map((head) => el("th", { scope: "col" }, head)))),
    el("tbody", {}, rows.map((cells) => el("tr", {}, cells.map((cell, column) =>
      el(column ? "td" : "th", { "data-head": heads[column], scope: column ? null : "row" }, cell)))))));
}

// Buttons of which one is pressed.
export function choice(root, options, chosen, choose) {
  root.replaceChildren(...options.map(([value, text]) => el("button", {
    type: "button", "data-key": value, "aria-pressed": `${value === chosen}`,
    onclick: () => {
      for (const one of root.children) one.setAttribute("aria-pressed", `${one.dataset.key === `${value}`}`);
      choose(value);
    },
  }, text)));
}

export const plural = (count, one, many = `${one}s`) => `${number(count)} ${count === 1 ? one : many}`;
