// Lines of Markdown -> blocks, by CommonMark's rules, with GitHub's tables: { tag, children | lines | text, start, end }, where
// `start` and `end` are the first and the last line. A line goes into the blocks that are open, from the outside in, as far
// as they take it; then it may begin new ones; what is left is text. Raw HTML stays text.

import { definition, unescape } from "./links.js";

const HEADING = /^(#{1,6})(?:[ \t]+|$)/;
const RULE = /^(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const FENCE = /^(`{3,})([^`]*)$|^(~{3,})(.*)$/;
const MARKER = /^(?:([-+*])|(\d{1,9})([.)]))(?=[ \t]|$)/;
const DELIMITERS = /^\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;
const MOST_NESTED = 24; // containers in containers; deeper ones stay text
const MOST_COLUMNS = 100;

// A line and how far it is read, in characters and in columns: a tab reaches to the next multiple of four.
class Line {
  constructor(text) {
    Object.assign(this, { text, at: 0, column: 0, spare: 0 }); // spare: columns of the last tab that are not used yet
  }

  get indent() {
    let count = this.spare;
    for (let at = this.at; this.text[at] === " " || this.text[at] === "\t"; at += 1) {
      count += this.text[at] === " " ? 1 : 4 - ((this.column + count) % 4);
    }
    return count;
  }

  get words() { // behind the indentation
    return this.text.slice(this.at).replace(/^[ \t]+/, "");
  }

  get rest() {
    return " ".repeat(this.spare) + this.text.slice(this.at);
  }

  get blank() {
    return this.words === "";
  }

  skip(columns) {
    for (let left = columns; left > 0;) {
      if (this.spare) {
        const take = Math.min(this.spare, left);
        this.spare -= take;
        this.column += take;
        left -= take;
      } else if (this.text[this.at] === "\t") {
        this.spare = 4 - (this.column % 4);
        this.at += 1;
      } else if (this.text[this.at] === " ") {
        this.at += 1;
        this.column += 1;
        left -= 1;
      } else {
        return;
      }
    }
  }

  take(characters) {
    this.at += characters;
    this.column += characters;
  }
}

const isContainer = ({ tag }) => ["root", "blockquote", "list", "li"].includes(tag);

class Parser {
  constructor(definitions) {
    this.definitions = definitions;
    this.root = { tag: "root", children: [], start: 0, end: 0 };
    this.path = [this.root]; // the blocks that are open, from the outside in
    this.number = 0;
  }

  get tip() {
    return this.path.at(-1);
  }

  add(text) {
    const line = new Line(text);
    const open = this.goOn(line);
    const whole = open === this.path.length; // nothing that was open ends here
    const leaf = whole && !isContainer(this.tip) ? this.tip : null;
    if (!(leaf && this.intoLeaf(leaf, line))) this.begin(line, open, leaf);
    this.number += 1;
  }

  // How many of the open blocks take this line.
  goOn(line) {
    let count = 1;
    for (; count < this.path.length; count += 1) {
      const block = this.path[count];
      if (block.tag === "blockquote") {
        if (line.indent > 3 || line.words[0] !== ">") break;
        this.quoteMark(line);
      } else if (block.tag === "li") {
        if (line.blank ? !block.children.length : line.indent < block.width) break;
        line.skip(line.blank ? line.indent : block.width);
      } else if (block.tag !== "list" && count < this.path.length - 1) {
        break;
      }
    }
    return count;
  }

  quoteMark(line) {
    line.skip(line.indent);
    line.take(1);
    if (line.indent) line.skip(1);
  }

  // Whether a leaf that goes on takes the line as it is.
  intoLeaf(leaf, line) {
    if (leaf.tag === "pre") {
      if (leaf.fence) {
        const closing = line.indent < 4 && line.words.trimEnd();
        if (closing && closing.length >= leaf.fence.length && closing === leaf.fence[0].repeat(closing.length)) {
          this.touch();
          leaf.closed = true;
          this.path.pop();
          return true;
        }
        line.skip(Math.min(line.indent, leaf.indent));
      } else {
        if (!line.blank && line.indent < 4) return false;
        line.skip(4);
      }
      leaf.lines.push(line.rest);
      if (leaf.fence || !line.blank) this.touch();
      return true;
    }
    return false;
  }

  touch() {
    for (const block of this.path) block.end = this.number;
  }

  closeTo(count) {
    while (this.path.length > count) finish(this.path.pop(), this.definitions, this.path.at(-1));
  }

  push(block) {
    Object.assign(block, { start: this.number, end: this.number });
    if (!isContainer(this.tip)) this.closeTo(this.path.length - 1);
    if (this.tip.tag === "list" && block.tag !== "li") this.closeTo(this.path.length - 1);
    this.tip.children.push(block);
    this.path.push(block);
    this.touch();
  }

  // New blocks that the line begins, then its text.
  begin(line, open, leaf) {
    let begun = false;
    const first = (block) => { // what did not go on ends before the first new block
      if (!begun) this.closeTo(open);
      begun = true;
      this.push(block);
    };
    let paragraph = leaf?.tag === "p" ? leaf : null;
    for (;;) {
      const inParagraph = paragraph && !begun;
      if (line.blank) break;
      if (line.indent > 3) {
        if (begun || this.tip.tag !== "p") {
          line.skip(4);
          return first({ tag: "pre", lines: [line.rest] });
        }
        break;
      }
      const { words } = line;
      if (inParagraph && this.retag(paragraph, words)) return undefined;
      if (words[0] === ">" && this.path.length < MOST_NESTED) {
        this.quoteMark(line);
        first({ tag: "blockquote", children: [] });
      } else if (HEADING.test(words)) {
        const said = words.replace(HEADING, "").replace(/(?:^|[ \t]+)#+[ \t]*$/, "").trim();
        first({ tag: `h${HEADING.exec(words)[1].length}`, text: said });
        return this.closeTo(this.path.length - 1);
      } else if (FENCE.test(words)) {
        const [, ticks, tickInfo, tildes, tildeInfo] = FENCE.exec(words);
        const info = unescape((tickInfo ?? tildeInfo).trim());
        return first({ tag: "pre", lines: [], fence: ticks ?? tildes, info, indent: line.indent });
      } else if (RULE.test(words)) {
        first({ tag: "hr" });
        return this.closeTo(this.path.length - 1);
      } else if (!this.beginItem(line, first, inParagraph, begun ? this.path.length : open)) {
        break;
      }
      paragraph = null;
    }
    return this.text(line, open, begun, leaf);
  }

  // A line below a paragraph that makes it a heading or a table.
  retag(paragraph, words) {
    if (DELIMITERS.test(words) && !/^-\s/.test(words) && this.beginTable(paragraph, words)) return true;
    if (!/^(?:=+|-+)[ \t]*$/.test(words)) return false;
    takeDefinitions(paragraph, this.definitions);
    if (!paragraph.lines.length) return false;
    this.touch();
    paragraph.tag = words[0] === "=" ? "h1" : "h2";
    paragraph.text = paragraph.lines.join("\n").trimEnd();
    delete paragraph.lines;
    this.path.pop();
    return true;
  }

  beginTable(paragraph, words) {
    const header = cells(paragraph.lines.at(-1));
    const marks = cells(words);
    if (!/\|.|.\|/.test(paragraph.lines.at(-1).trim())) return false;
    if (header.length !== marks.length || marks.length > MOST_COLUMNS) return false;
    paragraph.lines.pop();
    const parent = this.path[this.path.length - 2];
    if (!paragraph.lines.length) parent.children.pop();
    paragraph.end = this.number - 2;
    this.closeTo(this.path.length - 1);
    const align = marks.map((mark) => ["", "left", "right", "center"][mark.startsWith(":") + 2 * mark.endsWith(":")]);
    this.push({ tag: "table", align, header, rows: [] });
    this.tip.start = this.number - 1;
    return true;
  }

  beginItem(line, first, inParagraph, open) {
    const found = MARKER.exec(line.words);
    if (!found || this.path.length >= MOST_NESTED) return false;
    const [mark, bullet, number, delimiter] = found;
    const empty = line.words.length === mark.length || /^[ \t]*$/.test(line.words.slice(mark.length));
    if (inParagraph && (empty || (number && Number(number) !== 1))) return false;
    const before = line.indent;
    line.skip(before);
    line.take(mark.length);
    const after = line.indent;
    const space = empty || after > 4 ? 1 : after;
    line.skip(space);
    const kind = bullet ?? delimiter;
    const list = this.path[open - 1];
    if (!(list.tag === "list" && list.kind === kind)) {
      first({ tag: "list", kind, ordered: Boolean(number), first: Number(number), children: [] });
    }
    first({ tag: "li", width: before + mark.length + space, children: [] });
    return true;
  }

  text(line, open, begun, leaf) {
    if (line.blank) { // ends a paragraph or table, and a container that does not go on
      if (begun) return;
      const quote = this.path.slice(0, open).findLastIndex(({ tag }) => tag === "blockquote");
      for (const block of this.path.slice(0, quote + 1)) block.end = this.number; // an empty line of a quote is a part of it
      if (open < this.path.length && isContainer(this.path[open])) this.closeTo(open);
      if (["p", "table"].includes(this.tip.tag)) this.closeTo(this.path.length - 1);
      return;
    }
    if (!begun && this.tip.tag === "p") { // goes on, even where its containers do not ("lazy")
      this.tip.lines.push(line.words);
      this.touch();
      return;
    }
    if (!begun && leaf?.tag === "table") {
      leaf.rows.push(cells(line.words));
      this.touch();
      return;
    }
    if (!begun) this.closeTo(open);
    this.push({ tag: "p", lines: [line.words] });
  }
}

// "| a | b |" -> its cells; \| is a bar that divides nothing.
function cells(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/((?:^|[^\\])(?:\\\\)*)\|$/, "$1");
  return inner.split(/(?<!\\)\|/).map((cell) => cell.replace(/\\\|/g, "|").trim());
}

function takeDefinitions(paragraph, definitions) {
  let text = paragraph.lines.join("\n");
  while (text.startsWith("[")) {
    const found = definition(text);
    if (!found) break;
    if (!definitions.has(found.name)) definitions.set(found.name, found);
    text = text.slice(found.length);
  }
  paragraph.lines = text ? text.split("\n") : [];
}

function finish(block, definitions) {
  if (block.tag === "p") {
    takeDefinitions(block, definitions);
    block.text = block.lines.join("\n").trimEnd();
    if (!block.text) block.tag = "none"; // nothing but definitions
  } else if (block.tag === "pre" && !block.fence) {
    while (block.lines.length && !block.lines.at(-1).trim()) block.lines.pop();
  } else if (block.tag === "list") {
    const apart = (all) => all.some((one, index) => index && all[index - 1].end + 1 < one.start);
    block.loose = apart(block.children) || block.children.some((item) => apart(item.children));
  }
}

// The blocks of some lines. `definitions` gains what they define.
export function parseBlocks(lines, definitions) {
  const parser = new Parser(definitions);
  for (const line of lines) parser.add(line);
  const open = parser.path[1]; // still open: it goes on when more text comes
  parser.closeTo(1);
  return { blocks: parser.root.children, open };
}
