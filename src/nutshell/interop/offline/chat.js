// The page: one conversation with the model in the worker.

import { EXAMPLES, fitBox } from "./composer.js";
import { $, button, copyButton, element, isSend, notice, rest } from "./dom.js";
import { PartsView } from "./parts.js";

const FIELDS = { temperature: "temperature", "top-k": "topK", "max-tokens": "maxTokens" };

const { temperature, topK, ...model } = JSON.parse($("model").textContent);
const options = { temperature, topK, maxTokens: 256 };
const question = $("question");
let messages = []; // { role, parts }, the questions that were answered and their answers
let current = null; // the answer in progress
let asked = 0; // answers are numbered

// ---- the model

const worker = new Worker(URL.createObjectURL(new Blob([$("worker").textContent], { type: "text/javascript" })));
worker.addEventListener("error", ({ message }) => failed(message));
worker.addEventListener("message", ({ data }) => {
  if (data.failed) failed(data.failed);
  else if (data.ready) document.documentElement.dataset.ready = ""; // for those who drive the page
  else if (data.ask === current?.ask) show(data);
});
worker.postMessage({ ...model, weights: $("weights").textContent });
$("weights").remove();

function failed(message) {
  notice(`This browser cannot run the model: ${message}`);
}

function ask(text) {
  if (current || !text.trim()) return;
  const seed = $("seed").value === "" ? crypto.getRandomValues(new Uint32Array(1))[0] : Number($("seed").value);
  const asks = { role: "user", parts: [{ type: "text", text }] };
  current = { ask: asked += 1, asks, view: new PartsView(), node: element("article", "assistant streaming") };
  current.node.append(element("h3", "hidden", "Answer"), current.view.node);
  const bubble = element("div", "bubble", text);
  bubble.dir = "auto";
  $("log").append(element("article", "user", element("h3", "hidden", "You"), bubble), current.node);
  worker.postMessage({ ask: current.ask, messages: [...messages, asks], options: { ...options, seed } });
  setBusy();
  toEnd();
}

// What has come of the answer so far, at its end with `finish`.
function show({ parts, finish, tokens, seconds, dropped, error }) {
  const { view, node, asks } = current;
  const following = $("scroll").scrollHeight - $("scroll").scrollTop - $("scroll").clientHeight < 60;
  view.update(parts, !finish);
  if (finish) {
    const said = parts.map(({ text }) => text).join("");
    const speed = tokens?.length > 1 && seconds ? ` · ${((tokens.length - 1) / seconds).toFixed(0)} tokens/s` : "";
    const stats = tokens ? `${tokens.length} token${tokens.length === 1 ? "" : "s"}${speed}` : finish;
    const notes = element("div", "notes", ...notesOf({ finish, dropped, error, empty: !parts.length })
      .map((words) => element("p", finish === "failed" ? "error" : "note", words)));
    node.append(notes, element("div", "actions", copyButton(() => said), element("span", "stats", stats)));
    node.classList.remove("streaming");
    if (parts.length) messages.push(asks, { role: "assistant", parts });
    $("announcer").textContent = said || notes.textContent;
    current = null;
    setBusy();
  }
  if (following) toEnd();
}

function notesOf({ finish, dropped, error, empty }) {
  return [
    dropped && `This conversation is longer than what the model can read at once: its ${dropped} oldest messages were left out.`,
    finish === "length" && "The answer reached the longest length allowed.",
    finish === "failed" && `The answer failed: ${error}`,
    finish === "stop" && empty && "The model had nothing to say.",
  ].filter(Boolean);
}

function stop() {
  if (current) worker.postMessage({ stop: current.ask });
}

function newChat() {
  stop();
  messages = [];
  current = null;
  $("log").replaceChildren();
  setBusy();
  rest();
}

// ---- the page around it

function toEnd() {
  $("scroll").scrollTop = $("scroll").scrollHeight;
}

function setBusy() {
  const focused = document.activeElement === $("stop");
  $("stop").hidden = !current;
  $("send").hidden = Boolean(current);
  $("welcome").hidden = $("log").childElementCount > 0;
  $("log").setAttribute("aria-busy", String(Boolean(current)));
  if (focused && !current) rest();
}

function fitQuestion() {
  fitBox(question);
  $("send").disabled = !question.value.trim();
}

function submit() {
  if (current || !question.value.trim()) return;
  ask(question.value);
  question.value = "";
  fitQuestion();
}

question.addEventListener("input", fitQuestion);
question.addEventListener("keydown", (event) => {
  if (!isSend(event)) return;
  event.preventDefault();
  submit();
});
$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
$("stop").addEventListener("click", stop);
$("new-chat").addEventListener("click", newChat);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.isComposing && !document.querySelector("dialog[open]")) stop();
});

function showTemperature() {
  $("temperature-shown").textContent = options.temperature.toFixed(2);
}

for (const [id, key] of Object.entries(FIELDS)) {
  $(id).value = options[key];
  $(id).addEventListener("input", () => {
    if ($(id).validity.valid) options[key] = Number($(id).value);
    showTemperature();
  });
}
showTemperature();
$("open-settings").addEventListener("click", () => $("settings").showModal());
$("settings").addEventListener("click", (event) => {
  if (event.target === $("settings")) $("settings").close(); // the backdrop
});
for (const text of EXAMPLES) $("examples").append(button(text, "example", () => {
  ask(text);
  rest();
}));
