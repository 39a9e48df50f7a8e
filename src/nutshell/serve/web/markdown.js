// A small Markdown, as DOM nodes made from text only: nothing a model writes is ever parsed as HTML.
// Code blocks, headings, lists, quotes, rules; inline code, bold, italic, links to http and https.

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6}) +(.*)$/;
const RULE = /^ {0,3}([-*_])( *\1){2,} *$/;
const ITEM = /^( {0,8})(?:([-*+])|(\d{1,9})[.)]) +(.*)$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const MAX_DEPTH = 8;

import { copyButton, element as made } from "./dom.js";

const element = (tag, ...children) => made(tag, "", ...children);

function codeBlock(lines, language) {
  const code = element("code", lines.join("\n"));
  const head = element("div", element("span", language || "text"), copyButton(() => code.textContent));
  head.className = "code-head";
  const pre = element("pre", code);
  pre.tabIndex = 0; // wide code scrolls, and must do so by keyboard too
  const block = element("div", head, pre);
  block.className = "code";
  return block;
}

function safeLink(address, label) {
  let url;
  try {
    url = new URL(address);
  } catch {
    return null;
  }
  if (url.protocol !== "http:" && url.protocol !== "https:") return null;
  const link = element("a", ...label);
  link.href = url.href;
  link.target = "_blank";
  link.rel = "noopener noreferrer nofollow";
  return link;
}

// One pattern for what begins a span; each alternative is bounded, so that hostile text costs no more than its length.
const SPAN = new RegExp([
  /(?<ticks>`{1,3})(?<code>[^`\n]{1,2000}?)\k<ticks>(?!`)/,
  /\*\*(?<bold>[^\s*](?:[^*\n]{0,2000}[^\s*])?)\*\*/,
  /(?<![\w*])\*(?<italic>[^\s*](?:[^*\n]{0,2000}[^\s*])?)\*(?![\w*])/,
  /\[(?<label>[^\]\n[]{1,500})\]\((?<address>[^\s()<>]{1,2000})\)/,
  /(?<bare>https?:\/\/[^\s<>"'`()[\]{}]{1,2000})/,
].map((part) => part.source).join("|"), "g");

export function inline(text, depth = 0) {
  const nodes = [];
  let from = 0;
  for (const match of depth > 3 ? [] : text.matchAll(SPAN)) {
    const { code, bold, italic, label, address } = match.groups;
    let { bare } = match.groups;
    let node = null;
    if (code !== undefined) node = element("code", code);
    else if (bold !== undefined) node = element("strong", ...inline(bold, depth + 1));
    else if (italic !== undefined) node = element("em", ...inline(italic, depth + 1));
    else if (label !== undefined) node = safeLink(address, inline(label, depth + 1));
    else if (bare !== undefined) {
      bare = bare.replace(/[.,;:!?*]+$/, "");
      node = safeLink(bare, [bare]);
    }
    if (!node) continue; // stays text
    nodes.push(text.slice(from, match.index), node);
    from = match.index + (bare === undefined ? match[0].length : bare.length);
  }
  nodes.push(text.slice(from));
  return nodes.filter((node) => node !== "");
}

function paragraph(lines) {
  const node = element("p");
  lines.forEach((line, index) => {
    if (index) node.append(element("br"));
    node.append(...inline(line.trim()));
  });
  return node;
}

function list(lines, depth) {
  const first = ITEM.exec(lines[0]);
  const node = element(first[2] ? "ul" : "ol");
  if (first[3] && first[3] !== "1") node.start = Number(first[3]);
  const items = [];
  for (const line of lines) {
    const match = ITEM.exec(line);
    if (match && match[1].length <= first[1].length + 1) items.push([match[4]]);
    else items[items.length - 1].push(line.replace(/^ {1,4}/, ""));
  }
  for (const item of items) {
    const content = blocks(item, depth + 1);
    // An item of one line is not a paragraph: it would stand too far from the next.
    if (content.length && content[0].tagName === "P") content.splice(0, 1, ...content[0].childNodes);
    node.append(element("li", ...content));
  }
  return node;
}

// Lines -> block nodes.
function blocks(lines, depth) {
  if (depth > MAX_DEPTH) return [paragraph(lines)];
  const nodes = [];
  let plain = [];
  const flush = () => {
    if (plain.length) nodes.push(paragraph(plain));
    plain = [];
  };
  for (let at = 0; at < lines.length;) {
    const line = lines[at];
    const fence = FENCE.exec(line);
    const heading = HEADING.exec(line);
    if (fence) {
      flush();
      let end = at + 1;
      while (end < lines.length && !isFenceEnd(lines[end], fence[1])) end += 1;
      nodes.push(codeBlock(lines.slice(at + 1, end), fence[2])); // one still open while it streams runs to the end
      at = end + 1;
    } else if (heading) {
      flush();
      nodes.push(element(`h${Math.min(6, heading[1].length + 2)}`, ...inline(heading[2].replace(/ +#+ *$/, ""))));
      at += 1;
    } else if (RULE.test(line)) {
      flush();
      nodes.push(element("hr"));
      at += 1;
    } else if (QUOTE.test(line)) {
      flush();
      let end = at;
      while (end < lines.length && QUOTE.test(lines[end])) end += 1;
      const inside = lines.slice(at, end).map((quoted) => QUOTE.exec(quoted)[1]);
      nodes.push(element("blockquote", ...blocks(inside, depth + 1)));
      at = end;
    } else if (ITEM.test(line)) {
      flush();
      const ordered = Boolean(ITEM.exec(line)[3]);
      let end = at + 1;
      while (end < lines.length && continuesList(lines, end, ordered)) end += 1;
      nodes.push(list(lines.slice(at, end), depth));
      at = end;
    } else {
      if (line.trim()) plain.push(line);
      else flush();
      at += 1;
    }
  }
  flush();
  return nodes;
}

function isFenceEnd(line, fence) {
  const text = line.trim();
  return text.length >= fence.length && text === fence[0].repeat(text.length);
}

// A list goes on with another item of its kind, an indented line, or a blank line before either.
function continuesList(lines, at, ordered) {
  if (!lines[at].trim()) return at + 1 < lines.length && lines[at + 1].trim() && continuesList(lines, at + 1, ordered);
  const match = ITEM.exec(lines[at]);
  return match ? match[1].length > 1 || Boolean(match[3]) === ordered : /^ {2,}/.test(lines[at]);
}

export function markdown(text) {
  const fragment = document.createDocumentFragment();
  fragment.append(...blocks(text.replace(/\r\n?/g, "\n").split("\n"), 0));
  return fragment;
}

export class MarkdownView {
  node = made("div");

  update({ text }) {
    this.node.replaceChildren(markdown(text));
  }
}
