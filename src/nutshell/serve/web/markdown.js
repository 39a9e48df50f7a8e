// Markdown as DOM nodes made from text only: nothing a model writes is ever parsed as HTML. Links lead to http(s) alone, images
// are not loaded. While an answer streams, only its last blocks are parsed and drawn again.

import { parseBlocks } from "./blocks.js";
import { copyButton, element as made } from "./dom.js";
import { inline } from "./inline.js";

const MOST_NESTED = 40; // of inline nodes; deeper ones become their text
const BARE = /https?:\/\/[^\s<>"'`[\]{}]{1,2000}/g;

const element = (tag, ...children) => made(tag, "", ...children);

function safeLink(address, label) {
  let url;
  try {
    url = new URL(address);
  } catch {
    return null;
  }
  if (url.protocol !== "http:" && url.protocol !== "https:") return null;
  const link = element("a", ...label);
  Object.assign(link, { href: url.href, target: "_blank", rel: "noopener noreferrer nofollow" });
  return link;
}

// Text, with the addresses in it as links.
function bareLinks(text) {
  const nodes = [];
  let from = 0;
  for (const { 0: found, index } of text.includes("://") ? text.matchAll(BARE) : []) {
    let address = found.replace(/[.,;:!?*_]+$/, "");
    if (address.endsWith(")") && !address.includes("(")) address = address.replace(/\)+$/, "").replace(/[.,;:!?*_]+$/, "");
    const link = safeLink(address, [address]);
    if (!link) continue;
    nodes.push(text.slice(from, index), link);
    from = index + address.length;
  }
  return [...nodes, text.slice(from)].filter((node) => node !== "");
}

const textOf = (parts) => parts.map((part) => (typeof part === "string" ? part : textOf(part.children ?? []))).join("");

function inlineNodes(parts, depth = 0, linked = false) {
  return parts.flatMap((part) => {
    if (typeof part === "string") {
      const lines = part.split("\n"); // a line of the text is a line on screen
      return lines.flatMap((line, index) => [...(index ? [element("br")] : []), ...(linked ? [line] : bareLinks(line))]);
    }
    if (part.tag === "br") return [element("br")];
    if (part.tag === "code") return [element("code", part.children[0])];
    if (depth > MOST_NESTED) return [textOf(part.children)];
    const inside = inlineNodes(part.children, depth + 1, linked || part.tag === "a");
    if (part.tag === "img") return [safeLink(part.href, inside.length ? inside : [part.href]) ?? element("span", ...inside)];
    if (part.tag === "a") return linked ? inside : [safeLink(part.href, inside) ?? element("span", ...inside)];
    return [element(part.tag, ...inside)];
  });
}

function codeBlock({ lines, info = "" }) {
  const code = element("code", lines.join("\n"));
  const language = info.split(/\s/)[0];
  const head = made("div", "code-head", made("span", "", language || "text"), copyButton(() => code.textContent));
  const pre = element("pre", code);
  pre.tabIndex = 0; // wide code scrolls, and must do so by keyboard too
  pre.dir = "ltr";
  pre.setAttribute("role", "region");
  pre.setAttribute("aria-label", `Code, ${language || "text"}`);
  return made("div", "code", head, pre);
}

function table({ align, header, rows }, definitions) {
  const row = (cells, tag) => element("tr", ...align.map((side, column) => {
    const cell = element(tag, ...inlineNodes(inline(cells[column] ?? "", definitions)));
    if (side) cell.dataset.align = side;
    if (tag === "th") cell.scope = "col";
    return cell;
  }));
  const node = element("table", element("thead", row(header, "th")), element("tbody", ...rows.map((cells) => row(cells, "td"))));
  const box = made("div", "table", node);
  box.tabIndex = 0;
  box.setAttribute("role", "region");
  box.setAttribute("aria-label", "Table");
  return box;
}

// "[ ] to do" and "[x] done" at the beginning of an item.
function listItem({ children }, loose, definitions) {
  const first = children[0];
  const task = first?.tag === "p" && /^\[([ xX])\][ \n]/.exec(first.text);
  const nodes = children.flatMap((block) => {
    const shown = block === first && task ? { ...block, text: block.text.slice(task[0].length) } : block;
    return block.tag === "p" && !loose ? inlineNodes(inline(shown.text, definitions)) : blockNodes([shown], definitions);
  });
  const item = element("li", ...nodes);
  if (!task) return item;
  const box = made("span", "task", task[1] === " " ? "☐" : "☑");
  box.setAttribute("role", "img");
  box.setAttribute("aria-label", task[1] === " " ? "to do:" : "done:");
  item.className = "task-item";
  (loose ? item.firstChild : item).prepend(box, " ");
  return item;
}

function blockNodes(blocks, definitions) {
  return blocks.filter(({ tag }) => tag !== "none").map((block) => {
    const { tag, children, text } = block;
    if (tag === "pre") return codeBlock(block);
    if (tag === "table") return table(block, definitions);
    if (tag === "hr") return element("hr");
    if (tag === "blockquote") return element("blockquote", ...blockNodes(children, definitions));
    if (tag === "list") {
      const list = element(block.ordered ? "ol" : "ul", ...children.map((item) => listItem(item, block.loose, definitions)));
      if (block.ordered && block.first !== 1) list.start = block.first;
      return list;
    }
    const shown = tag === "p" ? "p" : `h${Math.min(6, Number(tag[1]) + 2)}`; // the page has an h1, a message an h3
    return element(shown, ...inlineNodes(inline(text, definitions)));
  });
}

const lineEnds = (text) => text.replace(/\r\n?/g, "\n").replace(/\0/g, "\ufffd");

// Shows a text that may grow.
export class MarkdownView {
  constructor() {
    this.node = made("div");
    this.begin();
  }

  begin() {
    this.node.replaceChildren();
    // Up to character `from` the text is drawn for good, as the first `kept` nodes.
    Object.assign(this, { source: "", from: 0, kept: 0, definitions: new Map(), code: null });
  }

  update({ text }) {
    const source = lineEnds(text);
    if (!source.startsWith(this.source.slice(0, this.from))) this.begin();
    const added = source.slice(this.source.length);
    const grows = this.code && source.startsWith(this.source);
    this.source = source;
    if (grows && !this.code.ends(added)) this.code.node.appendData(added);
    else this.draw();
  }

  // A block that begins in the last line may still become something else, or part of the block before it.
  draw() {
    const lines = this.source.slice(this.from).split("\n");
    const { blocks, open } = parseBlocks(lines, this.definitions);
    while (this.node.childNodes.length > this.kept) this.node.lastChild.remove();
    const nodes = blockNodes(blocks, this.definitions);
    this.node.append(...nodes);
    const shown = blocks.filter(({ tag }) => tag !== "none");
    const last = shown.findLastIndex(({ start }) => start < lines.length - 1);
    this.code = open?.tag === "pre" && open.fence && open.start < lines.length - 1 ? openCode(nodes.at(-1), open) : null;
    if (last < 1) return;
    this.kept += last;
    for (const line of lines.slice(0, shown[last].start)) this.from += line.length + 1;
  }

  // The text is complete: what is defined at its end may be meant at its beginning.
  finish() {
    if (!this.definitions.size) return;
    const { definitions } = this;
    const { source } = this;
    this.begin();
    this.definitions = definitions;
    this.update({ text: source });
  }
}

// A block of code that is not closed yet grows by plain text, as long as no line may be its end.
function openCode(block, { fence, lines, indent }) {
  if (indent || !lines.length) return null;
  const node = block.querySelector("code").firstChild;
  let line = lines.at(-1); // not complete yet
  return node && { node, ends(added) {
    const begun = (line + added).split("\n");
    line = begun.at(-1);
    return begun.some((one) => one.trimStart().startsWith(fence[0]));
  } };
}
