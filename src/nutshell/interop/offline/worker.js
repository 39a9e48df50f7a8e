// The worker that holds the model: one reply at a time, so that the page never waits.
//
// In: { weights, tensors, floats, shape, tokenizer, pattern } once, then { ask: number, messages, options } and { stop: number }.
// Out: { ready } or { failed }, then for an answer { ask, parts } again and again and { ask, finish, ... } at its end.

import { Model, readTensors } from "./model.js";
import { fit, reply } from "./reply.js";
import { Tokenizer } from "./tokenizer.js";

const TURN_MILLISECONDS = 30; // so long it computes before it listens again

let model = null;
let tokenizer = null;
let stopped = 0; // the last answer that nobody wants any more

function fromBase64(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < bytes.length; i += 1) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

function load({ weights, tensors, floats, shape, tokenizer: content, pattern }) {
  tokenizer = new Tokenizer(content, pattern);
  model = new Model(shape, readTensors(fromBase64(weights), tensors, floats));
}

const turn = () => new Promise((done) => { setTimeout(done, 1); }); // messages that wait come first

// Pieces that follow each other and are of one type become one.
function join(parts, part) {
  if (parts.at(-1)?.type === part.type) parts.at(-1).text += part.text;
  else if (part.text) parts.push({ ...part });
}

async function answer({ ask, messages, options }) {
  const { ids, dropped } = fit(messages, tokenizer, model.shape.context, options.maxTokens);
  const steps = reply(model, tokenizer, ids, options);
  const parts = [];
  let heard = -Infinity; // when it listened last
  let seconds = 0; // of the reply, without its prompt
  for (;;) {
    if (performance.now() - heard > TURN_MILLISECONDS) {
      postMessage({ ask, parts });
      await turn();
      heard = performance.now();
    }
    if (stopped >= ask) return postMessage({ ask, parts, dropped, finish: "stopped" });
    const began = performance.now();
    const { done, value } = steps.next();
    if (parts.length) seconds += (performance.now() - began) / 1000;
    if (value && !done) join(parts, value);
    if (done) {
      return postMessage({ ask, parts, dropped, seconds, ...value });
    }
  }
}

let queue = Promise.resolve();

addEventListener("message", ({ data }) => {
  if (data.stop) {
    stopped = data.stop;
  } else if (data.ask) {
    queue = queue.then(() => answer(data)).catch((error) => {
      postMessage({ ask: data.ask, parts: [], finish: "failed", error: String(error) });
    });
  } else {
    try {
      load(data);
      postMessage({ ready: true });
    } catch (error) {
      postMessage({ failed: String(error) });
    }
  }
});
