// Parts of Markdown's links: label, destination, title. Each takes the text and a position, and returns [value, position after]
// or null. Lengths are bounded, so that hostile text costs no more than its length.

const LONGEST = 2000;
const ENTITIES = {
  amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", copy: "©", reg: "®", trade: "™", hellip: "…", ndash: "–",
  mdash: "—", lsquo: "‘", rsquo: "’", ldquo: "“", rdquo: "”", laquo: "«", raquo: "»", bull: "•", middot: "·", times: "×",
  divide: "÷", plusmn: "±", minus: "−", le: "≤", ge: "≥", ne: "≠", larr: "←", rarr: "→", deg: "°", euro: "€", pound: "£",
  frac12: "½", auml: "ä", ouml: "ö", uuml: "ü", Auml: "Ä", Ouml: "Ö", Uuml: "Ü", szlig: "ß", eacute: "é", egrave: "è",
};
const ENTITY = /&(?:#[xX]([0-9a-fA-F]{1,6})|#([0-9]{1,7})|([A-Za-z][A-Za-z0-9]{1,31}));/y;
const ESCAPED = /\\([!-/:-@[-`{-~])|&(?:#[xX][0-9a-fA-F]{1,6}|#[0-9]{1,7}|[A-Za-z][A-Za-z0-9]{1,31});/g;
const DESTINATION = /<((?:[^<>\n\\]|\\.){0,2000})>/y;
const TITLE = /"((?:[^"\\]|\\[^]){0,2000})"|'((?:[^'\\]|\\[^]){0,2000})'|\(((?:[^()\\]|\\[^]){0,2000})\)/y;
const LABEL = /\[((?:[^[\]\\]|\\[^]){1,999})\]/y;
const SPACES = /[ \t]*(?:\n[ \t]*)?/y;

export function match(pattern, text, at) {
  pattern.lastIndex = at;
  return pattern.exec(text);
}

// An entity, as its character.
export function entity(text, at) {
  const found = match(ENTITY, text, at);
  if (!found) return null;
  const [all, hex, decimal, name] = found;
  const code = hex ? parseInt(hex, 16) : Number(decimal);
  const invalid = code === 0 || code > 0x10ffff || (code >= 0xd800 && code < 0xe000);
  const character = name ? ENTITIES[name] : String.fromCodePoint(invalid ? 0xfffd : code);
  return character ? [character, at + all.length] : null;
}

export function unescape(text) {
  return text.replace(ESCAPED, (all, character) => character ?? entity(all, 0)?.[0] ?? all);
}

export const spaces = (text, at) => at + match(SPACES, text, at)[0].length;

export function label(text, at) {
  const found = match(LABEL, text, at);
  return found && found[1].trim() ? [found[1], at + found[0].length] : null;
}

export const sameLabel = (text) => text.trim().replace(/\s+/g, " ").toLowerCase().toUpperCase(); // case folding: ẞ is SS

export function destination(text, at) {
  if (text[at] === "<") {
    const found = match(DESTINATION, text, at);
    return found && [unescape(found[1]), at + found[0].length];
  }
  let end = at;
  for (let depth = 0; end < text.length && end - at < LONGEST; end += 1) {
    const character = text[end];
    if (character === "\\" && /[!-/:-@[-`{-~]/.test(text[end + 1] ?? "")) end += 1;
    else if (character <= " " || character === "\x7f") break;
    else if (character === "(") depth += 1;
    else if (character === ")") {
      if (!depth) break;
      depth -= 1;
    }
    if (depth > 32) return null;
  }
  const balanced = (text.slice(at, end).replace(/\\[^]/g, "").match(/[()]/g) ?? []).reduce(
    (depth, one) => depth + (one === "(" ? 1 : -1), 0) === 0;
  return balanced ? [unescape(text.slice(at, end)), end] : null;
}

export function title(text, at) {
  const found = match(TITLE, text, at);
  if (!found) return null;
  const said = found[1] ?? found[2] ?? found[3];
  return /\n[ \t]*\n/.test(said) ? null : [unescape(said), at + found[0].length];
}

// A definition `[label]: destination "title"` at the beginning of a paragraph; what is behind it must be the end of a line.
export function definition(text) {
  const name = label(text, 0);
  if (!name || text[name[1]] !== ":") return null;
  const begin = spaces(text, name[1] + 1);
  const to = destination(text, begin);
  if (!to || to[1] === begin) return null;
  const lineEnd = (at) => match(/[ \t]*(?:\n|$)/y, text, at);
  const before = spaces(text, to[1]);
  const said = before > to[1] ? title(text, before) : null;
  for (const [words, at] of said ? [said, ["", to[1]]] : [["", to[1]]]) {
    const end = lineEnd(at);
    if (end) return { name: sameLabel(name[0]), href: to[0], title: words, length: at + end[0].length };
  }
  return null;
}
