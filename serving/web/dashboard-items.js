// What the model holds near an item, now and an hour ago; and how a user's history bears on the answer.

import { heatmap, scatter } from "/web/dashboard-charts.js";
import { clock, el, empty, figure, isNumber, number, section, versionName } from "/web/dashboard-parts.js";

export function items(app) {
  const search = el("input", { id: "item-search", type: "search", placeholder: "a title", autocomplete: "off", spellcheck: "false", maxlength: 200, "aria-controls": "found" });
  const found = el("ul", { id: "found", class: "found", "data-testid": "found" });
  const near = section("Neighbours", { wide: true, testid: "neighbours" });
  const user = el("input", { id: "item-user", type: "search", placeholder: "a user's id", autocomplete: "off", spellcheck: "false", maxlength: 256, value: app.query.get("user") ?? "" });
  const ask = el("form", { class: "controls" }, el("label", { for: "item-user" }, "Of user"), user, el("button", { class: "quiet" }, "Show"));
  const heat = section("History and answer", { wide: true, testid: "interactions" });
  const root = el("div", {},
    el("div", { class: "controls" }, el("label", { for: "item-search" }, "Item"), search), found, near.root, ask, heat.root);
  let typed = 0;

  async function look() {
    const text = search.value.trim();
    const { ok, data } = await app.ask(`/v1/items?search=${encodeURIComponent(text)}&limit=8`);
    if (!ok || text !== search.value.trim()) return;
    found.replaceChildren(...data.items.map((one) => el("li", {}, el("button", {
      type: "button", class: "quiet", "data-item-id": one.item_id, "aria-pressed": `${one.item_id === app.query.get("item")}`,
      onclick: () => choose(one.item_id),
    }, one.title ?? one.item_id))));
    if (!data.items.length) found.replaceChildren(el("li", { class: "soft" }, text ? `No item matches “${text}”.` : "No item is known yet."));
    else if (!app.query.get("item") && !text) choose(data.items[0].item_id);
  }

  function choose(id) {
    app.remember("item", id);
    for (const one of found.querySelectorAll("button")) one.setAttribute("aria-pressed", `${one.dataset.itemId === id}`);
    app.soon();
  }

  search.addEventListener("input", () => { clearTimeout(typed); typed = setTimeout(look, 150); });
  search.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowDown" && event.key !== "Enter") return;
    event.preventDefault();
    found.querySelector("button")?.focus();
  });
  found.addEventListener("keydown", (event) => {
    const to = { ArrowDown: "nextElementSibling", ArrowRight: "nextElementSibling", ArrowUp: "previousElementSibling", ArrowLeft: "previousElementSibling" }[event.key];
    if (!to) return;
    event.preventDefault();
    (event.target.closest("li")[to]?.querySelector("button") ?? search).focus();
  });
  ask.addEventListener("submit", (event) => { event.preventDefault(); app.remember("user", user.value.trim()); app.soon(); });
  heat.body.replaceChildren(empty("Name a user to see which items of the history bear on which of the answer."));
  look();

  function draw({ neighbours, interactions }) {
    near.draw(neighbours, drawNeighbours);
    if (!app.query.get("user")) return;
    heat.draw(interactions, drawInteractions);
  }

  function needs() {
    const [item, who] = [app.query.get("item"), app.query.get("user")];
    return {
      ...(item ? { neighbours: [`/v1/monitor/neighbours?item_id=${encodeURIComponent(item)}`, 10] } : {}),
      ...(who ? { interactions: [`/v1/monitor/interactions?user_id=${encodeURIComponent(who)}`, 10] } : {}),
    };
  }

  return { root, draw, needs, keys: { "/": ["item search", () => search.select()] } };
}

function drawNeighbours({ item, now, then }) {
  if (!now) return empty("No version that holds this item is served yet.");
  const [newer, older] = [now.items, then?.items ?? []];
  const [isNew, isOld] = [new Set(newer.map((one) => one.item_id)), new Set(older.map((one) => one.item_id))];
  const came = then ? newer.filter((one) => !isOld.has(one.item_id)) : [];
  const left = older.filter((one) => !isNew.has(one.item_id));
  const place = new Map(older.map((one, rank) => [one.item_id, rank]));
  const node = el("div", { class: "neighbours" });
  const point = (id) => {
    for (const one of node.querySelectorAll("[data-spot]")) one.classList.toggle("pointed", one.dataset.spot === id);
  };
  const line = (from) => (one, rank) => {
    const entry = el("li", { "data-spot": one.item_id, tabindex: 0, "data-key": `${from} ${one.item_id}` },
      el("span", { class: "rank" }, `${rank + 1}`), el("span", { class: "name" }, one.title ?? one.item_id), ...moved(from, one, rank, place, isNew, isOld, then),
      figure(`monitor/neighbours#${from}.items.${rank}.score`, one.score, "ratio"));
    for (const type of ["pointerenter", "focus"]) entry.addEventListener(type, () => point(one.item_id));
    for (const type of ["pointerleave", "blur"]) entry.addEventListener(type, () => point(null));
    return entry;
  };
  const listed = (title, picture, from) => el("div", { class: "list" }, el("h3", {}, title, " ", el("small", {}, versionName(picture.version), isNumber(picture.at) ? `, ${clock(picture.at)}` : "")),
    el("ol", {}, picture.items.map(line(from))));
  node.append(
    el("div", { class: "picture" }, el("h3", {}, item.title ?? item.item_id), scatter(item, newer, older, point),
      el("p", { class: "soft" }, then ? [el("i", { class: "swatch stayed" }), " stayed ", el("i", { class: "swatch came" }), " came ", el("i", { class: "swatch left" }), " left "] : [],
        el("i", { class: "swatch self" }), " the item; numbers as in the list of now"),
      el("p", { "data-testid": "moved" }, then
        ? came.length || left.length ? `${names(came)} came; ${names(left)} left.` : "The same items are near as were then."
        : "There is no older snapshot to compare with yet.")),
    then ? listed("Then", then, "then") : "", listed("Now", now, "now"));
  return node;
}

const MOST_NAMES = 4;

function names(list) {
  if (!list.length) return "none";
  const rest = list.length - MOST_NAMES;
  return list.slice(0, MOST_NAMES).map((one) => one.title ?? one.item_id).join(", ") + (rest > 0 ? ` and ${rest} more` : "");
}

function moved(from, one, rank, place, isNew, isOld, then) {
  if (!then) return [];
  if (from === "then") return isNew.has(one.item_id) ? [] : [el("b", { class: "move left" }, "left")];
  if (!isOld.has(one.item_id)) return [el("b", { class: "move came" }, "came")];
  const steps = place.get(one.item_id) - rank;
  if (!steps) return [];
  return [el("span", { class: "move", "aria-label": `${steps > 0 ? "up" : "down"} ${Math.abs(steps)}` }, `${steps > 0 ? "▲" : "▼"} ${Math.abs(steps)}`)];
}

function drawInteractions(found) {
  if (!found.rows.length) return empty("Nothing is known of what this user did.");
  if (!found.columns.length) return empty("There is no answer for this user yet.");
  const kind = found.kind === "attention" ? "How much the model attends to each item of the history" : "How alike each item of the history is";
  return [el("p", { class: "soft" }, `${kind} (down), newest first, for each item of the answer (across, numbered).`),
    heatmap(found, `Point at a cell, or move with the arrow keys, to read it. ${number(found.rows.length * found.columns.length)} values.`)];
}
