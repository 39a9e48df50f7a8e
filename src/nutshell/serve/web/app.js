// The page: which conversation is open, sending, streaming, stopping. Drawing is in view.js, storage in store.js.

import { connect } from "./connection.js";
import { setUpPanels } from "./panels.js";
import { streamChat } from "./sse.js";
import * as store from "./store.js";
import { AnswerView, QuestionView, button, plainText } from "./view.js";

const $ = (id) => document.getElementById(id);
const EXAMPLES = ["What is the capital of France?", "How many times does the letter e appear in cheese?",
  "What is 47 plus 85?", "Tell me a short story."];

const values = store.settings();
let chat = null;
let running = null; // { controller, message } while an answer streams

// ---- the conversation on screen

const scroller = $("scroll");
let following = true; // the view follows the text unless the reader has scrolled up

function atEnd() {
  return scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 60;
}

function scrollToEnd(force) {
  if (force) following = true;
  if (following) scroller.scrollTop = scroller.scrollHeight;
  $("to-end").hidden = atEnd();
}

scroller.addEventListener("scroll", () => {
  following = atEnd();
  $("to-end").hidden = following;
});
$("to-end").addEventListener("click", () => scrollToEnd(true));

function viewOf(message) {
  return message.role === "user"
    ? new QuestionView(message, { onEdit: edit })
    : new AnswerView(message, { onRegenerate: regenerate });
}

function show(message) {
  const view = viewOf(message);
  $("log").append(view.node);
  return view;
}

function draw() {
  $("log").replaceChildren();
  chat.messages.forEach(show);
  $("welcome").hidden = chat.messages.length > 0;
  $("title").textContent = chat.title || "New chat";
  document.title = chat.title ? `${chat.title} · nutshell` : "nutshell";
  history.replaceState(null, "", chat.messages.length ? `#${chat.id}` : location.pathname);
  drawList();
  scrollToEnd(true);
}

function drawList() {
  const entries = store.allChats().map((one) => {
    const open = button(one.title || "New chat", "open", () => openChat(one));
    if (one.id === chat.id) open.setAttribute("aria-current", "true");
    const remove = button("✕", "remove", () => removeChat(one), `Delete “${one.title}”`);
    const item = document.createElement("li");
    item.append(open, remove);
    return item;
  });
  $("chats").replaceChildren(...entries);
}

function openChat(next) {
  stop();
  chat = next;
  draw();
  panels.closeSidebar();
  $("question").focus();
}

function removeChat(one) {
  if (one.id === chat.id) {
    stop();
    chat = store.newChat();
  }
  store.deleteChat(one.id);
  draw();
  panels.notice("The conversation is deleted.", { label: "Undo", action: () => { save(one); drawList(); } });
}

function save(one) {
  if (!store.saveChat(one)) {
    panels.notice("This browser does not keep conversations (private mode, or its storage is full).");
  }
}

// ---- asking

function ask(text) {
  if (running || !text.trim()) return;
  if (!chat.messages.length) chat.title = text.trim().replace(/\s+/g, " ").slice(0, 60);
  chat.messages.push({ role: "user", text });
  draw();
  answer();
}

function edit(message, text) {
  stop();
  const at = chat.messages.indexOf(message);
  if (at === 0) chat.title = "";
  chat.messages.length = at;
  ask(text);
}

function regenerate(message) {
  stop();
  chat.messages.length = chat.messages.indexOf(message);
  draw();
  answer();
}

function take(message, chunk) {
  if (chunk.nutshell?.dropped_messages) {
    message.note = "This conversation is longer than what the model can read at once: "
      + `its ${chunk.nutshell.dropped_messages} oldest messages were left out.`;
  }
  for (const choice of chunk.choices || []) {
    const { content, nutshell } = choice.delta || {};
    const part = nutshell ? { type: nutshell.type, text: nutshell.text } : { type: "text", text: content || "" };
    const last = message.parts[message.parts.length - 1];
    if (last && last.type === part.type) last.text += part.text;
    else if (part.text) message.parts.push(part);
    if (choice.finish_reason === "length") {
      message.note = [message.note, "The answer reached the longest length that the settings allow."].filter(Boolean).join(" ");
    }
  }
}

function statistics(usage, seconds) {
  const count = usage.completion_tokens;
  const speed = seconds > 0 ? ` · ${(count / seconds).toFixed(1)} tokens/s` : "";
  return `${count} token${count === 1 ? "" : "s"}${speed}`;
}

async function answer() {
  const here = chat;
  const message = { role: "assistant", parts: [] };
  const controller = new AbortController();
  const body = {
    messages: store.apiMessages(here, values.system),
    temperature: values.temperature,
    max_tokens: connection.limit(values.maxTokens),
  };
  if (values.topK > 0) body.top_k = values.topK;
  here.messages.push(message);
  here.updated = Date.now();
  save(here);
  drawList();
  const view = show(message);
  running = { controller, message, chat: here };
  setBusy(true);
  view.update(true);
  scrollToEnd(true);

  let frame = 0;
  // From the request on: a short answer may arrive in one piece, and between its tokens there is no time to tell.
  const sent = performance.now();
  let last = sent;
  const redraw = () => {
    frame = 0;
    view.update(running?.message === message);
    scrollToEnd(false);
  };
  try {
    await streamChat(body, {
      apiKey: values.apiKey,
      signal: controller.signal,
      onChunk: (chunk) => {
        if (controller.signal.aborted) return;
        take(message, chunk);
        if (chunk.choices?.length) last = performance.now();
        if (chunk.usage) message.stats = statistics(chunk.usage, (last - sent) / 1000);
        if (!frame) frame = requestAnimationFrame(redraw);
      },
    });
    if (!message.parts.length) message.note = "The model had nothing to say.";
  } catch (error) {
    if (controller.signal.aborted) message.stats = "stopped";
    else message.error = connection.explain(error);
    if (error.status === 401) panels.openSettings("api-key");
  }
  cancelAnimationFrame(frame);
  if (running?.message === message) running = null;
  setBusy(running !== null);
  redraw();
  if (!controller.signal.aborted) save(here); // stop() has saved it, and the conversation may be deleted since
  if (here === chat) $("announcer").textContent = message.error || plainText(message);
}

function stop() {
  if (!running) return;
  const { controller, message, chat: where } = running;
  running = null;
  message.stats = "stopped";
  save(where);
  controller.abort();
  setBusy(false);
}

function setBusy(busy) {
  $("stop").hidden = !busy;
  $("send").hidden = busy;
  $("log").setAttribute("aria-busy", String(busy));
}

// ---- the box below

const question = $("question");

function fitQuestion() {
  question.style.height = "auto";
  question.style.height = `${Math.min(question.scrollHeight, 220)}px`;
  $("send").disabled = !question.value.trim();
}

function submit() {
  const text = question.value;
  if (running || !text.trim()) return;
  question.value = "";
  fitQuestion();
  ask(text);
}

question.addEventListener("input", fitQuestion);
question.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    submit();
  } else if (event.key === "ArrowUp" && !question.value) {
    const all = document.querySelectorAll("article.user .edit");
    if (!all.length || running) return;
    event.preventDefault(); // else the key moves the cursor in the box that opens
    all[all.length - 1].click();
  }
});
$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
$("stop").addEventListener("click", () => {
  stop();
  question.focus();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running && !document.querySelector("dialog[open]")) stop();
  if (event.key.toLowerCase() === "o" && event.shiftKey && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    openChat(store.newChat());
  }
});
$("new-chat").addEventListener("click", () => openChat(store.newChat()));
window.addEventListener("pagehide", () => {
  if (running) save(running.chat);
});
window.addEventListener("storage", drawList); // another tab

for (const text of EXAMPLES) $("examples").append(button(text, "example", () => ask(text)));

// ---- begin

const panels = setUpPanels(values, {
  deleteAll: () => {
    stop();
    store.allChats().forEach((one) => store.deleteChat(one.id));
    chat = store.newChat();
    draw();
  },
  keyChanged: () => connection.check(),
});
const connection = connect(values, panels);
chat = store.allChats().find((one) => `#${one.id}` === location.hash) || store.newChat();
draw();
fitQuestion();
