// One reply: the prompt read, then token after token, with the calculator's results forced in, as `infer/request.py` does.

import { calculate } from "./calculator.js";

const SHORT_REPLY = 16; // so many tokens are kept for the reply where the last question leaves little room
const SHARE_FOR_THE_REPLY = 4; // history may fill all of the context but one part in this many

// Ids of messages { role, parts: [{ type, text }] } up to where the next reply begins.
export function render(messages, tokenizer) {
  const { special } = tokenizer;
  const wrapped = (name, text) => [special[`<|${name}_start|>`], ...tokenizer.encode(text), special[`<|${name}_end|>`]];
  const names = { python: "python", python_output: "output" };
  const said = messages.flatMap(({ role, parts }) => {
    if (role === "user") return wrapped("user", parts[0].text);
    const ids = parts.flatMap(({ type, text }) => (names[type] ? wrapped(names[type], text) : tokenizer.encode(text)));
    return [special["<|assistant_start|>"], ...ids, special["<|assistant_end|>"]];
  });
  return [special["<|bos|>"], ...said, special["<|assistant_start|>"]];
}

// The prompt, and how many of the oldest messages were left out so that a reply fits (`infer/conversation.py`). A question that is
// too long alone loses its beginning.
export function fit(messages, tokenizer, context, maxTokens) {
  const room = context - Math.max(1, Math.min(maxTokens, Math.floor(context / SHARE_FOR_THE_REPLY)));
  let dropped = 0;
  let ids = render(messages, tokenizer);
  while (ids.length > room && dropped + 1 < messages.length) ids = render(messages.slice(dropped += 2), tokenizer);
  const most = context - Math.max(1, Math.min(maxTokens, SHORT_REPLY, Math.floor(context / SHARE_FOR_THE_REPLY)));
  if (ids.length > most) ids = [...ids.slice(0, 2), ...ids.slice(ids.length - (most - 2))];
  return { ids, dropped };
}

// Numbers of [0, 1) that a seed determines: mulberry32.
export function randomNumbers(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}

// The next token: the likeliest at temperature 0, else one of the `topK` likeliest, drawn by their probabilities (0: of all).
export function choose(logits, { temperature, topK }, random) {
  let best = 0;
  for (let id = 1; id < logits.length; id += 1) if (logits[id] > logits[best]) best = id;
  if (!(temperature > 0)) return best;
  let ids = Array.from(logits.keys());
  if (topK > 0 && topK < ids.length) ids = ids.sort((a, b) => logits[b] - logits[a]).slice(0, topK);
  const weights = ids.map((id) => Math.exp((logits[id] - logits[best]) / temperature));
  let left = random() * weights.reduce((sum, weight) => sum + weight, 0);
  const drawn = weights.findIndex((weight) => (left -= weight) < 0);
  return ids[drawn < 0 ? weights.indexOf(1) : drawn];
}

// Yields { type, text } for every token, null for each that is only read. Returns { finish, tokens }.
export function* reply(model, tokenizer, prompt, { maxTokens, seed, ...sampling }) {
  const { special } = tokenizer;
  const [toolStart, toolEnd] = [special["<|python_start|>"], special["<|python_end|>"]];
  const ends = ["<|bos|>", "<|assistant_end|>", "<|user_start|>"].map((name) => special[name]);
  const limit = Math.min(maxTokens, model.shape.context - prompt.length);
  const random = randomNumbers(seed);
  const stream = tokenizer.stream();
  const tokens = [];
  let expression = null; // ids of a tool call that is not complete
  let unread = prompt.slice(model.keep(prompt));
  while (tokens.length < limit) {
    let logits = null;
    for (const [index, id] of unread.entries()) {
      logits = model.read(id, index === unread.length - 1);
      yield null;
    }
    const id = choose(logits, sampling, random);
    tokens.push(id);
    unread = [id];
    if (ends.includes(id)) {
      yield { type: "text", text: stream.flush() };
      return { finish: "stop", tokens };
    }
    if (expression && id === toolEnd) {
      yield { type: "python", text: stream.flush() };
      const result = calculate(tokenizer.decode(expression));
      expression = null;
      if (result === null) continue;
      const forced = [special["<|output_start|>"], ...tokenizer.encode(result), special["<|output_end|>"]];
      if (tokens.length + forced.length > limit) break; // half a result would be a wrong one
      tokens.push(...forced);
      unread.push(...forced);
      yield { type: "python_output", text: result };
    } else if (id === toolStart) {
      if (!expression) yield { type: "text", text: stream.flush() };
      expression = [];
    } else {
      expression?.push(id);
      yield { type: expression ? "python" : "text", text: stream.push(id) };
    }
  }
  yield { type: expression ? "python" : "text", text: stream.flush() };
  return { finish: "length", tokens };
}
