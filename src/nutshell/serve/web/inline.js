// The text of a paragraph -> its parts: strings, and nodes { tag, children } (em, strong, del, a, img, code, br). Emphasis by
// CommonMark's rules: runs of * and _ are paired from the inside out once the text is read. Raw HTML stays text.

import { destination, entity, label, match, sameLabel, spaces, title } from "./links.js";

const SPECIAL = /[\\`*_~[\]!<&\n]/g;
const AUTOLINK = /<([A-Za-z][A-Za-z0-9.+-]{1,31}:[^\s<>]{0,2000})>/y;
const EMAIL = /<([\w.!#$%&'*+/=?^`{|}~-]{1,100}@[A-Za-z0-9][A-Za-z0-9.-]{0,200})>/y;
const PUNCTUATION = /[!-/:-@[-`{-~]/;
const MARK = /^[\p{P}\p{S}]/u;
const SPACE = /^\s/u;

class Reader {
  constructor(text, definitions) {
    Object.assign(this, { text, definitions, at: 0, parts: [], brackets: [], lastRun: null });
    this.ticks = null; // length of a run of ` -> where such runs are
  }

  read() {
    const { text } = this;
    while (this.at < text.length) {
      SPECIAL.lastIndex = this.at;
      const next = SPECIAL.exec(text)?.index ?? text.length;
      if (next > this.at) this.parts.push(text.slice(this.at, next));
      this.at = next;
      if (next < text.length) this.special(text[next]);
    }
    pairRuns(this.lastRun, null);
    return assemble(this.parts);
  }

  plain(length = 1) {
    this.parts.push(this.text.slice(this.at, this.at + length));
    this.at += length;
  }

  special(character) {
    const { text, at } = this;
    if (character === "\\") this.escape(text[at + 1] ?? "");
    else if (character === "`") this.code();
    else if (character === "\n") this.lineBreak();
    else if (character === "&") this.entity();
    else if (character === "<") this.autolink();
    else if (character === "[") this.open("[");
    else if (character === "!") text[at + 1] === "[" ? this.open("![") : this.plain();
    else if (character === "]") this.close();
    else this.run(character);
  }

  escape(next) {
    if (next === "\n") {
      this.parts.push({ tag: "br" });
      this.at += 2;
      this.skipSpaces();
    } else if (PUNCTUATION.test(next)) {
      this.parts.push(next);
      this.at += 2;
    } else {
      this.plain();
    }
  }

  skipSpaces() {
    this.at += match(/[ \t]*/y, this.text, this.at)[0].length;
  }

  lineBreak() {
    const last = this.parts.at(-1);
    const bare = typeof last === "string" ? last.replace(/[ \t]+$/, "") : last;
    if (typeof last === "string") this.parts[this.parts.length - 1] = bare;
    this.parts.push(typeof last === "string" && last.endsWith("  ") ? { tag: "br" } : "\n");
    this.at += 1;
    this.skipSpaces();
  }

  // All runs of ` are found once, so that many that are never closed cost no more than their length.
  code() {
    const { text, at } = this;
    if (!this.ticks) {
      this.ticks = new Map();
      for (const { 0: { length }, index } of text.matchAll(/`+/g)) {
        if (!this.ticks.has(length)) this.ticks.set(length, []);
        this.ticks.get(length).push(index);
      }
    }
    const { length } = match(/`+/y, text, at)[0];
    const places = this.ticks.get(length) ?? [];
    while (places.length && places[0] <= at) places.shift();
    if (!places.length) return this.plain(length);
    let code = text.slice(at + length, places[0]).replace(/\n/g, " ");
    if (/^ .* $/.test(code) && code.trim()) code = code.slice(1, -1);
    this.parts.push({ tag: "code", children: [code] });
    this.at = places[0] + length;
    return undefined;
  }

  entity() {
    const found = entity(this.text, this.at);
    if (!found) return this.plain();
    this.parts.push(found[0]);
    this.at = found[1];
    return undefined;
  }

  autolink() {
    const found = match(AUTOLINK, this.text, this.at);
    const email = found ? null : match(EMAIL, this.text, this.at);
    if (!found && !email) return this.plain();
    const href = found ? found[1] : `mailto:${email[1]}`;
    this.parts.push({ tag: "a", href, children: [(found ?? email)[1]] });
    this.at += (found ?? email)[0].length;
    return undefined;
  }

  // ---- links

  open(mark) {
    const { parts, lastRun, at } = this;
    this.brackets.push({ image: mark === "![", index: parts.length, run: lastRun, active: true, from: at + mark.length });
    this.plain(mark.length);
  }

  close() {
    const opener = this.brackets.pop();
    const target = opener?.active ? this.target(opener) : null;
    if (!target) return this.plain();
    const [link, end] = target;
    pairRuns(this.lastRun, opener.run);
    this.lastRun = opener.run;
    if (opener.run) opener.run.next = null;
    const children = assemble(this.parts.splice(opener.index).slice(1));
    this.parts.push({ tag: opener.image ? "img" : "a", ...link, children });
    this.at = end;
    if (!opener.image) for (const one of this.brackets) if (!one.image) one.active = false; // no link inside a link
    return undefined;
  }

  // What stands behind the label: (destination "title"), [reference], [] or nothing.
  target(opener) {
    const { text } = this;
    const after = this.at + 1;
    if (text[after] === "(") {
      const to = destination(text, spaces(text, after + 1));
      const before = to && spaces(text, to[1]);
      const said = to && before > to[1] ? title(text, before) : null;
      const end = to && spaces(text, said ? said[1] : to[1]);
      if (to && text[end] === ")") return [{ href: to[0], title: said?.[0] }, end + 1];
    }
    const named = label(text, after);
    const own = text.slice(opener.from, this.at);
    const name = named ? named[0] : own.length < 1000 && !/(?<!\\)(?:\\\\)*[[]/.test(own) ? own : "";
    const known = this.definitions.get(sameLabel(name));
    if (!known) return null;
    const end = named ? named[1] : text.startsWith("[]", after) ? after + 2 : after;
    return [{ href: known.href, title: known.title }, end];
  }

  // ---- emphasis

  run(character) {
    const { text, at } = this;
    let end = at;
    while (text[end] === character) end += 1;
    const before = beforeOf(text, at);
    const after = String.fromCodePoint(text.codePointAt(end) ?? 32);
    const left = !SPACE.test(after) && (!MARK.test(after) || SPACE.test(before) || MARK.test(before));
    const right = !SPACE.test(before) && (!MARK.test(before) || SPACE.test(after) || MARK.test(after));
    const word = character === "_";
    const run = {
      character, count: end - at, length: end - at, opens: [], closes: [], before: this.lastRun, next: null,
      canOpen: left && (!word || !right || MARK.test(before)), canClose: right && (!word || !left || MARK.test(after)),
    };
    if (this.lastRun) this.lastRun.next = run;
    this.lastRun = run;
    this.parts.push(run);
    this.at = end;
  }
}

function beforeOf(text, at) {
  if (!at) return " ";
  const low = text.charCodeAt(at - 1);
  return low >= 0xdc00 && low < 0xe000 ? text.slice(at - 2, at) : text[at - 1];
}

function fits(opener, closer) {
  if (opener.character !== closer.character || !opener.canOpen) return false;
  if (closer.character === "~") return opener.count >= 2 && closer.count >= 2;
  const both = opener.canClose || closer.canOpen; // "rule of three"
  return !(both && (opener.length + closer.length) % 3 === 0 && (opener.length % 3 || closer.length % 3));
}

// Pairs the runs behind `floor` up to `last`. Each closer looks back for the nearest opener that fits; `bottoms` says how far it
// is known that there is none, so that the work stays linear.
function pairRuns(last, floor) {
  let closer = last;
  while (closer && closer.before !== floor) closer = closer.before;
  const bottoms = new Map();
  while (closer) {
    const key = `${closer.character}${closer.canOpen}${closer.length % 3}`;
    let opener = closer.canClose ? closer.before : null;
    const bottom = bottoms.get(key) ?? floor;
    while (opener && opener !== floor && opener !== bottom && !fits(opener, closer)) opener = opener.before;
    if (!opener || opener === floor || opener === bottom) {
      if (closer.canClose) bottoms.set(key, closer.before ?? floor);
      closer = closer.next;
      continue;
    }
    const two = opener.count >= 2 && closer.count >= 2;
    const tag = closer.character === "~" ? "del" : two ? "strong" : "em";
    for (const [run, list] of [[opener, opener.opens], [closer, closer.closes]]) {
      run.count -= two ? 2 : 1;
      list.push(tag);
    }
    closer.before = opener; // what is between them stays text
    opener.next = closer;
    if (!opener.count) unlink(opener);
    if (!closer.count || (closer.character === "~" && closer.count < 2)) {
      unlink(closer);
      closer = closer.next;
    }
  }
}

function unlink(run) {
  if (run.before) run.before.next = run.next;
  if (run.next) run.next.before = run.before;
}

// Parts with paired runs -> the tree. A run closes what it closes, then what is left of it is text, then it opens.
function assemble(parts) {
  const root = { children: [] };
  const stack = [root];
  const add = (one) => {
    const { children } = stack.at(-1);
    if (one === "") return;
    if (typeof one === "string" && typeof children.at(-1) === "string") children[children.length - 1] += one;
    else children.push(one);
  };
  for (const part of parts) {
    if (typeof part === "string" || part.tag) {
      add(part);
      continue;
    }
    for (const tag of part.closes) if (stack.at(-1).tag === tag) stack.pop();
    add(part.character.repeat(part.count));
    for (const tag of part.opens.reverse()) {
      const node = { tag, children: [] };
      add(node);
      stack.push(node);
    }
    part.opens = [];
  }
  return root.children;
}

export function inline(text, definitions) {
  return new Reader(text, definitions).read();
}
