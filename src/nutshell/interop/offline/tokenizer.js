// Byte-level BPE and characters, from the content of a `tokenizer.json`: what `tokenizer/reference.py` does.

// The printable character that stands for each byte in such files: itself where it is visible Latin-1, else the next free one
// from U+0100 on.
function alphabet() {
  const visible = (byte) => (byte > 32 && byte < 127) || (byte > 160 && byte < 173) || byte > 173;
  let free = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCodePoint(visible(byte) ? byte : free++));
}

export class Tokenizer {
  // `pattern` is the regex that cuts text before merging, as JavaScript reads it.
  constructor({ model, normalizer, added_tokens: added }, pattern) {
    const encoder = new TextEncoder();
    this.special = Object.fromEntries(added.map(({ content, id }) => [content, id]));
    this.vocabulary = new Map(Object.entries(model.vocab));
    this.tokens = []; // bytes by id
    if (model.type === "WordLevel") {
      this.unknown = model.vocab[model.unk_token];
      for (const [character, id] of this.vocabulary) this.tokens[id] = encoder.encode(character);
    } else {
      const letters = alphabet();
      const bytes = new Map(letters.map((letter, byte) => [letter, byte]));
      for (const [name, id] of this.vocabulary) this.tokens[id] = Uint8Array.from(name, (letter) => bytes.get(letter));
      this.ranks = new Map(model.merges.map((pair, rank) => [pair, rank]));
      this.letters = letters;
      this.wholeFirst = model.ignore_merges;
    }
    for (const [name, id] of Object.entries(this.special)) {
      this.tokens[id] = new Uint8Array();
      this.vocabulary.delete(name);
    }
    Object.assign(this, { pattern: new RegExp(pattern, "gu"), normalized: normalizer?.type === "NFC", encoder });
  }

  // Ids of a text. One that spells a special token is plain text.
  encode(text) {
    if (this.unknown !== undefined) return Array.from(text, (character) => this.vocabulary.get(character) ?? this.unknown);
    return this.split(text).flatMap((piece) => this.merge(piece));
  }

  split(text) {
    return (this.normalized ? text.normalize("NFC") : text).match(this.pattern) ?? [];
  }

  // In a piece the merge that was learned first is made first, everywhere, until none applies.
  merge(piece) {
    let names = Array.from(this.encoder.encode(piece), (byte) => this.letters[byte]);
    if (this.wholeFirst && this.vocabulary.has(names.join(""))) return [this.vocabulary.get(names.join(""))];
    for (;;) {
      let best = Infinity;
      for (let i = 0; i + 1 < names.length; i += 1) best = Math.min(best, this.ranks.get(`${names[i]} ${names[i + 1]}`) ?? best);
      if (best === Infinity) return names.map((name) => this.vocabulary.get(name));
      const merged = [];
      for (let i = 0; i < names.length; i += 1) {
        const pair = i + 1 < names.length && this.ranks.get(`${names[i]} ${names[i + 1]}`) === best;
        merged.push(pair ? names[i] + names[i + 1] : names[i]);
        if (pair) i += 1;
      }
      names = merged;
    }
  }

  // Text of ids; bytes that are not UTF-8 become U+FFFD, special tokens nothing.
  decode(ids) {
    const stream = this.stream();
    return ids.map((id) => stream.push(id)).join("") + stream.flush();
  }

  // A decoder for ids that arrive one at a time; an incomplete character is held back.
  stream() {
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    return { push: (id) => decoder.decode(this.tokens[id], { stream: true }), flush: () => decoder.decode() };
  }
}
