// Is the server there, which models has it, is one loaded; and saying so in words.

import { notice } from "./dom.js";
import { settings } from "./options.js";
import { address, encode, getJson } from "./sse.js";

const WORDS = {
  401: "The API key is missing or wrong.",
  413: "This is more text than the server takes at once.",
  429: "The server is busy with other answers.",
  502: "The server behind the proxy cannot be reached.",
  504: "The server took too long to answer.",
};

// Of the server: `models` as /v1/models lists them, the default first; `feedback`, whether it keeps what readers say.
export const server = { models: [], feedback: false };
let timer = 0;
let said = false; // the notice line is not ours alone
let onChange = () => {};
let onKey = () => {};

export function modelOf(id) {
  return server.models.find((model) => model.id === id) ?? server.models[0];
}

export const contextOf = (id) => modelOf(id)?.max_model_len ?? 0;

function say(text, choice) {
  if (text || said) notice(text, choice);
  said = Boolean(text);
}

// "ok", "loading", "failed", "shutting down"; of several workers one that answers is enough here.
async function health() {
  const response = await fetch(address("health"), { cache: "no-store" });
  if (response.status !== 503) return "ok";
  const { status, workers = {} } = await response.json();
  return Object.values(workers).includes("ok") ? "ok" : status;
}

// `changed` is called when the models are known anew, `key` when the server asks for a key that the reader must give.
export function connect({ changed, key }) {
  onChange = changed;
  onKey = key;
  return check();
}

export async function check() {
  clearTimeout(timer);
  try {
    const status = await health();
    if (status !== "ok") {
      say(status === "loading" ? "The model is loading …" : `The server is not ready: ${status}.`);
      timer = setTimeout(check, 1000);
      return;
    }
    server.models = (await getJson("v1/models", settings.apiKey)).data;
    server.feedback = (await getJson("feedback", settings.apiKey).catch(() => null))?.enabled === true;
    say("");
    onChange();
  } catch (error) {
    if (error.status === 401) {
      say("This server asks for an API key.", { label: "Enter it", action: onKey });
      return;
    }
    say("The server cannot be reached. Trying again …");
    timer = setTimeout(check, 3000);
  }
}

// A run that trains gets new steps, and a model is loaded or not: looked up when the list is opened.
export async function refresh() {
  const { data } = await getJson("v1/models", settings.apiKey).catch(() => ({ data: server.models }));
  if (JSON.stringify(data) === JSON.stringify(server.models)) return;
  server.models = data;
  onChange();
}

// What passes by itself: a server that is away, still loading or busy. Why, in words; "" for what will not pass.
export function whyWait({ code, status }) {
  if (status === 429) return WORDS[429];
  if (code === "unreachable") return "The server cannot be reached.";
  if (status === 503) return code === "models_busy" ? "All models are busy." : "The model is loading.";
  return [502, 504].includes(status) ? WORDS[status] : "";
}

// Wait until it is worth asking again.
export async function becomesReady({ retryAfter }, signal) {
  const pause = (seconds) => new Promise((resolve) => {
    setTimeout(resolve, seconds * 1000);
    signal.addEventListener("abort", resolve, { once: true });
  });
  await pause(Math.min(retryAfter || 0.7, 10));
  while (!signal.aborted && (await health().catch(() => "gone")) !== "ok") await pause(0.7);
  if (!server.models.length) check();
}

export function explain(error) {
  return WORDS[error.status] || `${error.message[0].toUpperCase()}${error.message.slice(1).replace(/\.$/, "")}.`;
}

// A small request and its answer, as JSON. Throws AnswerError.
export const post = (path, body) => getJson(path, settings.apiKey, { method: "POST", body: encode(body) });
