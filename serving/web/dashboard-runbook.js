// The little of Markdown that runbooks are written in: headings, lists, tables, code.

import { el, table } from "/web/dashboard-parts.js";

// `follow(name)` is called for a link to another runbook.
export function markdown(text, follow) {
  const nodes = [];
  const inline = (words) => inlined(words, follow);
  let rows = [];
  let list = null, paragraph = [], code = null;
  const end = () => {
    if (paragraph.length) nodes.push(el("p", {}, ...inline(paragraph.join(" "))));
    if (rows.length) {
      const [heads, , ...cells] = rows.map((row) => row.slice(1, -1).split("|").map((cell) => cell.trim()));
      nodes.push(table(heads, cells.map((row) => row.map((cell) => el("span", {}, ...inline(cell)))), { class: "cards" }));
    }
    [paragraph, list, rows] = [[], null, []];
  };
  for (const line of text.split("\n")) {
    if (line.startsWith("```")) {
      if (code === null) { end(); code = []; } else { nodes.push(el("pre", {}, code.join("\n"))); code = null; }
      continue;
    }
    if (code !== null) { code.push(line); continue; }
    const heading = /^(#{1,4}) +(.*)/.exec(line), item = /^\s*(?:[-*]|(\d+)\.) +(.*)/.exec(line);
    if (heading) {
      end();
      if (heading[1].length > 1) nodes.push(el(`h${heading[1].length + 1}`, {}, ...inline(heading[2])));
    } else if (line.startsWith("|")) {
      if (!rows.length) end();
      rows.push(line.trim());
    } else if (item) {
      if (paragraph.length) end();
      if (!list) { list = el(item[1] ? "ol" : "ul", {}); nodes.push(list); }
      list.append(el("li", {}, ...inline(item[2])));
    } else if (!line.trim()) end();
    else if (list && /^\s/.test(line)) list.lastElementChild.append(" ", ...inline(line.trim()));
    else paragraph.push(line.trim());
  }
  if (code !== null) nodes.push(el("pre", {}, code.join("\n")));
  end();
  return nodes;
}

function inlined(text, follow) {
  return text.split(/(`[^`]+`|\*\*[^*]+\*\*|\[[^\]]+\]\([^)]+\))/).filter(Boolean).map((part) => {
    if (/^`.+`$/.test(part)) return el("code", {}, part.slice(1, -1));
    if (/^\*\*.+\*\*$/.test(part)) return el("b", {}, part.slice(2, -2));
    const [, words, name] = /^\[([^\]]+)\]\((?:([a-z0-9-]+)\.md)?/.exec(part) ?? [null, part];
    // Another runbook is shown here too; where other links lead to is not served.
    return name ? el("button", { type: "button", class: "link", onclick: () => follow(name) }, words) : words;
  });
}
