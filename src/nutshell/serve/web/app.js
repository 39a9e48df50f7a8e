// The page: which conversation is open, sending, streaming, stopping. Drawing is in view.js, storage in store.js.

import { connect } from "./connection.js";
import { setUpPanels } from "./panels.js";
import { streamChat } from "./sse.js";
import * as store from "./store.js";
import { AnswerView, QuestionView, button, isSend, plainText } from "./view.js";

const $ = (id) => document.getElementById(id);
const EXAMPLES = ["What is the capital of France?", "How many times does the letter e appear in cheese?",
  "What is 47 plus 85?", "Tell me a short story."];

const values = store.settings();
const running = new Map(); // conversation id -> { controller, message, chat } while this tab streams an answer to it
const views = new WeakMap(); // message -> what shows it
const deleted = []; // lists of conversations that Undo brings back, the last one first
const SAVE_MILLISECONDS = 500;
let chat = null; // the one on screen

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
  if (!views.has(message)) {
    views.set(message, message.role === "user"
      ? new QuestionView(message, { onEdit: edit })
      : new AnswerView(message, { onRegenerate: regenerate }));
  }
  return views.get(message);
}

const isStreaming = (message) => running.get(chat.id)?.message === message;

// Only messages that are not on screen yet are added, so that a box that is being edited stays as it is.
function draw() {
  const log = $("log");
  const thread = store.thread(chat);
  const nodes = thread.map(({ message, siblings }) => {
    const view = viewOf(message);
    view.setSiblings(siblings, showBranch);
    return view.node;
  });
  let same = 0;
  while (same < nodes.length && log.children[same] === nodes[same]) same += 1;
  while (log.children.length > same) log.lastChild.remove();
  log.append(...nodes.slice(same));
  $("welcome").hidden = nodes.length > 0;
  $("title").textContent = chat.title || "New chat";
  document.title = chat.title ? `${chat.title} · nutshell` : "nutshell";
  history.replaceState(null, "", nodes.length ? `#${chat.id}` : location.pathname + location.search);
  setBusy();
  drawList();
}

function drawList() {
  const focused = $("chats").contains(document.activeElement) ? document.activeElement : null;
  const entries = store.allChats().map((one) => {
    const open = button(one.title || "New chat", "open", () => openChat(one));
    if (one.id === chat.id) open.setAttribute("aria-current", "true");
    const remove = button("✕", "remove", () => removeChats([one]), `Delete “${one.title}”`);
    const item = document.createElement("li");
    item.dataset.id = one.id;
    item.append(open, remove);
    return item;
  });
  const at = focused && [...$("chats").children].indexOf(focused.parentNode);
  $("chats").replaceChildren(...entries);
  if (!focused) return;
  const item = entries.find((one) => one.dataset.id === focused.parentNode.dataset.id);
  if (item) item.querySelector(`.${focused.className}`).focus();
  else (entries[Math.min(at, entries.length - 1)]?.querySelector(".open") || $("new-chat")).focus(); // its neighbour
}

// Where the focus goes when what had it is gone. On a touch screen the box would bring up the keyboard.
function rest() {
  (window.matchMedia("(pointer: coarse)").matches ? $("log") : question).focus({ preventScroll: true });
}

function show(next) {
  chat = next;
  draw();
  scrollToEnd(true);
}

function openChat(next) {
  if (next.id !== chat.id) show(next); // an answer goes on while the reader looks elsewhere
  panels.closeSidebar();
  rest();
}

function showBranch(message) {
  store.follow(chat, message.id);
  store.saveHead(chat);
  draw();
  rest();
}

function removeChats(all) {
  all.forEach((one) => {
    stop(one);
    store.remove(one);
  });
  gone(all, "deleted");
}

function gone(all, how) {
  deleted.push(all);
  if (all.includes(chat)) show(store.newChat(values.system));
  else drawList();
  offerUndo(all.length === 1 ? `The conversation is ${how}.` : `${all.length} conversations are ${how}.`);
}

function offerUndo(text) {
  panels.notice(text, { label: "Undo", seconds: 20, action: () => {
    const all = deleted.pop();
    all.forEach(store.restore);
    if (!chat.messages.size && all.length === 1) show(all[0]);
    else drawList();
    if (deleted.length) offerUndo("More was deleted before.");
  } });
}

// ---- asking

function ask(text, parent = chat.leaf) {
  if (running.has(chat.id) || !text.trim()) return;
  if (parent === null) chat.title = text.trim().replace(/\s+/g, " ").slice(0, 60);
  answer(store.add(chat, { role: "user", text }, parent));
}

// Both leave what was said before as another version of it.
function edit(message, text) {
  stop();
  ask(text, message.parent);
  rest();
}

function regenerate(message) {
  stop();
  if (!message.parts.length && !message.streaming) store.drop(chat, message); // else another tab may be writing it
  answer(chat.messages.get(message.parent));
  rest();
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

async function answer(asked) {
  const here = chat;
  const controller = new AbortController();
  const body = {
    messages: store.apiMessages(here, asked.id),
    temperature: values.temperature,
    max_tokens: connection.limit(values.maxTokens),
  };
  if (values.topK > 0) body.top_k = values.topK;
  const message = store.add(here, { role: "assistant", parts: [], streaming: true }, asked.id);
  running.set(here.id, { controller, message, chat: here });
  draw();
  const view = viewOf(message);
  view.update(true);
  scrollToEnd(true);

  let timer = 0;
  let saved = 0;
  // From the request on: a short answer may arrive in one piece, and between its tokens there is no time to tell.
  let sent = 0;
  let last = 0;
  const redraw = () => {
    timer = 0;
    view.update(message.streaming);
    if (here === chat) scrollToEnd(false);
  };
  const onChunk = (chunk) => {
    if (controller.signal.aborted) return;
    take(message, chunk);
    if (chunk.choices?.length) last = performance.now();
    if (chunk.usage) message.stats = statistics(chunk.usage, (last - sent) / 1000);
    if (!timer) timer = setTimeout(() => requestAnimationFrame(redraw), 16);
    if (performance.now() - saved > SAVE_MILLISECONDS) {
      saved = performance.now();
      store.saveMessage(here, message);
    }
  };
  try {
    for (let waiting = true; waiting;) {
      sent = performance.now();
      waiting = false;
      try {
        await streamChat(body, { apiKey: values.apiKey, controller, onChunk });
        if (!message.parts.length) message.note = "The model had nothing to say.";
      } catch (error) {
        if (error.status !== 503 || controller.signal.aborted) throw error;
        message.note = "The model is loading. Your question is sent as soon as it is ready.";
        redraw();
        waiting = await connection.becomesReady(controller.signal);
        message.note = "";
        if (!waiting) throw error;
      }
    }
  } catch (error) {
    if (controller.signal.reason?.name === "AbortError") message.stats = "stopped";
    else message.error = connection.explain(error);
    if (error.status === 401 && here === chat) panels.openSettings("api-key");
  }
  if (running.get(here.id)?.message === message) finish(here);
  clearTimeout(timer);
  redraw();
  if (here === chat) $("announcer").textContent = message.error || plainText(message);
}

function finish(where) {
  const { message } = running.get(where.id);
  running.delete(where.id);
  message.streaming = false;
  store.saveMessage(where, message);
  setBusy();
}

function stop(where = chat) {
  if (!running.has(where.id)) return;
  const { controller, message } = running.get(where.id);
  message.stats = "stopped";
  finish(where);
  controller.abort();
}

function setBusy() {
  const busy = running.has(chat.id);
  const focused = document.activeElement === $("stop");
  $("stop").hidden = !busy;
  $("send").hidden = busy;
  if (focused && !busy) rest();
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
  if (running.has(chat.id) || !text.trim()) return;
  question.value = "";
  fitQuestion();
  ask(text);
}

question.addEventListener("input", fitQuestion);
question.addEventListener("keydown", (event) => {
  if (isSend(event)) {
    event.preventDefault();
    submit();
  } else if (event.key === "ArrowUp" && !question.value) {
    const all = document.querySelectorAll("article.user .edit");
    if (!all.length || running.has(chat.id)) return;
    event.preventDefault(); // else the key moves the cursor in the box that opens
    all[all.length - 1].click();
  }
});
$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
$("stop").addEventListener("click", () => stop());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.isComposing && !document.querySelector("dialog[open]")) stop();
  if (event.key.toLowerCase() === "o" && event.shiftKey && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    openChat(store.newChat(values.system));
  }
});
$("new-chat").addEventListener("click", () => openChat(store.newChat(values.system)));
window.addEventListener("pagehide", () => {
  for (const one of running.values()) store.saveMessage(one.chat, one.message);
});
window.addEventListener("beforeunload", (event) => {
  if (store.anyUnsaved()) event.preventDefault(); // the browser asks whether to leave
});

// Another tab wrote.
function changed(id, part) {
  for (const one of [...running.values()]) if (store.find(one.chat.id) !== one.chat) stop(one.chat);
  if (chat.messages.size && store.find(chat.id) !== chat) {
    gone([chat], "deleted in another tab");
  } else if (id === chat.id) {
    const message = chat.messages.get(part);
    if (message?.role === "assistant") viewOf(message).update(isStreaming(message));
    draw();
    scrollToEnd(false);
  } else {
    drawList();
  }
}

for (const text of EXAMPLES) $("examples").append(button(text, "example", () => ask(text)));

// ---- begin

const panels = setUpPanels(values, {
  deleteAll: () => removeChats(store.allChats()),
  keyChanged: () => connection.check(),
  system: () => chat.system,
  setSystem: (text) => {
    chat.system = text;
    store.saveHead(chat);
  },
  imported: () => drawList(),
  rest,
});
store.open({
  changed,
  refused: () => panels.notice("This browser does not keep this conversation (private mode, or its storage is full). It is lost "
    + "when you close the page.", { label: "Export all as JSON", action: panels.exportAll }),
});
const connection = connect(values, panels);
show(store.allChats().find((one) => `#${one.id}` === location.hash) || store.newChat(values.system));
fitQuestion();
