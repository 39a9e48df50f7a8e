// Answers in progress: asking the server, waiting for it, taking what it streams. Nothing is drawn here; `watch` hears of
// each change.

import { becomesReady, contextOf, explain, whyWait } from "./connection.js";
import { sampling, settings } from "./options.js";
import { streamAnswer } from "./sse.js";
import * as store from "./store.js";

const SAVE_MILLISECONDS = 500;
const running = new Map(); // message -> { controller, chat } while this tab streams it
let onChange = () => {};

export function watch(changed) {
  onChange = changed;
}

export const isStreaming = (message) => running.has(message);
const runningIn = (chat) => [...running].filter(([, one]) => one.chat === chat).map(([message]) => message);
export const isBusy = (chat) => runningIn(chat).length > 0;
export const busyChats = () => [...running.values()].map(({ chat }) => chat);

export function saveAll() {
  for (const [message, { chat }] of running) store.saveMessage(chat, message);
}

export function stop(chat) {
  for (const message of runningIn(chat)) {
    const { controller } = running.get(message);
    message.stats = "stopped";
    message.note = "";
    finish(message);
    controller.abort();
  }
}

function finish(message) {
  const { chat } = running.get(message);
  running.delete(message);
  message.streaming = false;
  store.saveMessage(chat, message);
}

// Ask for an answer, or for the rest of one that has parts already.
export async function start(chat, message) {
  const controller = new AbortController();
  const [path, body, cut] = requestFor(chat, message);
  Object.assign(message, { streaming: true, error: "", note: "", finish: "" });
  running.set(message, { controller, chat });
  onChange(chat, message);
  try {
    await receive(path, body, { chat, message, cut, controller });
    if (!message.parts.length) message.note = "The model had nothing to say.";
  } catch (error) {
    if (controller.signal.reason?.name !== "AbortError") message.error = explain(error);
    if (error.status === 401) message.needsKey = true;
  }
  if (running.has(message)) finish(message);
  onChange(chat, message);
}

function requestFor(chat, message) {
  const before = message.parts.length ? message.id : message.parent;
  const body = { ...sampling(chat.options), ...(message.model && { model: message.model }) };
  if (contextOf(message.model)) body.max_tokens = Math.min(body.max_tokens, contextOf(message.model));
  if (message.seed !== undefined) body.seed = message.seed;
  if (chat.kind === "text") {
    const context = contextOf(message.model); // the newest of a long text, so that a quarter is free
    const newest = context && { truncate_prompt_tokens: Math.max(2, context - Math.min(body.max_tokens, Math.ceil(context / 4))) };
    return ["v1/completions", { ...body, ...newest, prompt: store.textUpTo(chat, before).slice(-store.MOST_CHARACTERS) }, 0];
  }
  const { messages, cut } = store.sentMessages(chat, before);
  return ["v1/chat/completions", { ...body, messages }, cut];
}

// Streams into the message. While the server is away, loading or busy, the question waits and is sent then.
async function receive(path, body, { chat, message, cut, controller }) {
  let saved = 0;
  for (let error = null; ;) {
    const times = { sent: performance.now(), first: 0, last: 0 };
    const onChunk = (chunk) => {
      if (controller.signal.aborted) return;
      take(message, chunk, cut, times);
      if (performance.now() - saved > SAVE_MILLISECONDS) {
        saved = performance.now();
        store.saveMessage(chat, message);
      }
      onChange(chat, message);
    };
    try {
      return await streamAnswer(path, body, { apiKey: settings.apiKey, controller, onChunk });
    } catch (caught) {
      error = caught;
    }
    if (controller.signal.aborted || times.first || !whyWait(error)) throw error;
    message.note = `${whyWait(error)} Your question is sent as soon as it is ready.`;
    onChange(chat, message);
    await becomesReady(error, controller.signal);
    message.note = "";
    if (controller.signal.aborted) throw error;
  }
}

function take(message, chunk, cut, times) {
  const dropped = chunk.nutshell?.dropped_messages && chunk.nutshell.dropped_messages + cut;
  if (dropped) {
    message.note = "This conversation is longer than what the model can read at once: "
      + `its ${dropped} oldest messages were left out.`;
  }
  if (chunk.nutshell?.dropped_tokens) {
    message.note = "This text is longer than what the model can read at once: its beginning was left out.";
  }
  for (const choice of chunk.choices ?? []) {
    const special = choice.delta?.nutshell;
    const part = special ? { type: special.type, text: special.text }
      : { type: "text", text: choice.delta?.content ?? choice.text ?? "" };
    const last = message.parts.at(-1);
    if (last?.type === part.type) last.text += part.text;
    else if (part.text) message.parts.push(part);
    if (choice.finish_reason) message.finish = choice.finish_reason;
    // From the request on: a short answer may arrive in one piece, and between its tokens there is no time to tell.
    times.last = performance.now();
    if (part.text) times.first ||= times.last;
  }
  if (!chunk.usage) return;
  message.used = chunk.usage.total_tokens; // of the context
  message.tokens = (message.tokens || 0) + chunk.usage.completion_tokens;
  message.stats = statistics(message, { count: chunk.usage.completion_tokens, ...times });
}

function statistics({ tokens }, { count, sent, first, last }) {
  const words = tokens === undefined ? [] : [`${tokens} token${tokens === 1 ? "" : "s"}`];
  if (count && last > sent) words.push(`${(count / ((last - sent) / 1000)).toFixed(1)} tokens/s`);
  if (first) words.push(`first after ${((first - sent) / 1000).toFixed(2)} s`);
  return words.join(" · ");
}
