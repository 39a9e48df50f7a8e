// The conversation on screen: drawing its thread, asking, versions.

import * as answers from "./answers.js";
import { modelOf, server } from "./connection.js";
import { $, element, rest } from "./dom.js";
import { betterAnswer, rate } from "./feedback.js";
import * as store from "./store.js";
import { toggleTokens } from "./tokens.js";
import { AnswerView, QuestionView } from "./view.js";

const views = new WeakMap(); // message -> what shows it
const pairs = new Map(); // name of a pair -> the node that holds both answers
let chat = null;
let hooks = { drawn() {}, needsKey() {} };

export const current = () => chat;

// `drawn` is called after each change of what is on screen, `needsKey` when the server asks for an API key.
export function setUp(given) {
  hooks = given;
}

// ---- scrolling: the view follows the text unless the reader has scrolled up

const scroller = $("scroll");
let following = true;

function atEnd() {
  return scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 60;
}

export function scrollToEnd(force) {
  if (force) following = true;
  if (following) scroller.scrollTop = scroller.scrollHeight;
  $("to-end").hidden = atEnd();
}

scroller.addEventListener("scroll", () => {
  following = atEnd();
  $("to-end").hidden = following;
});
$("to-end").addEventListener("click", () => {
  scrollToEnd(true);
  rest();
});

// ---- drawing

const actions = {
  edit, regenerate, resume, choose: showBranch,
  tokens: (message, view) => toggleTokens(chat, message, view),
  rate: (message, view, rating) => rate(chat, message, view, rating),
  better: (message, view) => betterAnswer(chat, message, view),
};

function viewOf(message) {
  if (!views.has(message)) {
    const view = message.role === "user" ? new QuestionView(message, actions)
      : new AnswerView(message, actions, chat.kind === "text");
    views.set(message, view);
  }
  return views.get(message);
}

// One message of the thread as a node: its article, or two articles side by side.
function nodeOf({ message, pair, versions }) {
  for (const one of pair) {
    viewOf(one).place({ versions, pair, chosen: one === message, feedback: server.feedback, chat }, showBranch);
    if (one.role === "assistant") viewOf(one).update(answers.isStreaming(one));
  }
  if (pair.length < 2) return viewOf(message).node;
  if (!pairs.has(message.pair)) pairs.set(message.pair, element("div", "pair", ...pair.map((one) => viewOf(one).node)));
  return pairs.get(message.pair);
}

// Only messages that are not on screen yet are added, so that a box that is being edited stays as it is.
export function draw() {
  const log = $("log");
  const nodes = store.thread(chat).map(nodeOf);
  let same = 0;
  while (same < nodes.length && log.children[same] === nodes[same]) same += 1;
  while (log.children.length > same) log.lastChild.remove();
  log.append(...nodes.slice(same));
  log.classList.toggle("text", chat.kind === "text");
  $("welcome").hidden = nodes.length > 0;
  $("title").textContent = chat.title || (chat.kind === "text" ? "New text" : "New chat");
  document.title = chat.title ? `${chat.title} · nutshell` : "nutshell";
  history.replaceState(null, "", nodes.length ? `#${chat.id}` : location.pathname + location.search);
  setBusy();
  hooks.drawn();
}

function setBusy() {
  const busy = answers.isBusy(chat);
  const focused = document.activeElement === $("stop");
  $("stop").hidden = !busy;
  $("send").hidden = busy;
  if (focused && !busy) rest();
  $("log").setAttribute("aria-busy", String(busy));
}

// Drawing may take a fifth of the time, however long an answer becomes.
const timers = new WeakMap();
const SHARE = 5;

function redraw(where, message) {
  timers.delete(message);
  viewOf(message).update(answers.isStreaming(message));
  if (where === chat) scrollToEnd(false);
}

answers.watch((where, message) => {
  const busy = answers.isStreaming(message);
  if (busy && !timers.has(message) && views.has(message)) {
    const wait = Math.max(16, (SHARE - 1) * views.get(message).cost);
    timers.set(message, setTimeout(() => requestAnimationFrame(() => redraw(where, message)), wait));
  }
  if (busy) return;
  if (views.has(message)) redraw(where, message);
  if (where !== chat) return;
  setBusy();
  hooks.drawn();
  if (!answers.isBusy(chat)) $("announcer").textContent = message.error || message.note || store.plainText(message);
  if (message.needsKey) hooks.needsKey();
  delete message.needsKey;
});

export function show(next) {
  chat = next;
  draw();
  scrollToEnd(true);
}

function showBranch(message) {
  store.follow(chat, message.id);
  store.saveHead(chat);
  draw();
  rest();
}

// Another tab wrote a message of this conversation.
export function changed(part) {
  const message = chat.messages.get(part);
  if (message && views.has(message)) viewOf(message).update(answers.isStreaming(message));
  draw();
  scrollToEnd(false);
}

// ---- asking

export function ask(text, parent = chat.leaf) {
  if (answers.isBusy(chat) || !text.trim()) return;
  if (parent === null && !chat.title) chat.title = text.trim().replace(/\s+/g, " ").slice(0, 60);
  answer(store.add(chat, { role: "user", text }, parent));
}

// A new answer; with two models chosen, one of each with the same seed.
function answer(asked) {
  const name = (id) => modelOf(id)?.id ?? id;
  const seed = chat.options.seed === "" ? crypto.getRandomValues(new Uint32Array(1))[0] : Number(chat.options.seed);
  const both = chat.compare && { pair: store.newId(), seed };
  const models = both ? [chat.model, chat.compare] : [chat.model];
  const added = models.map((id) => store.add(chat, { role: "assistant", parts: [], model: name(id), ...both }, asked.id));
  chat.leaf = added[0].id;
  store.saveHead(chat);
  added.forEach((message) => answers.start(chat, message));
  draw();
  scrollToEnd(true);
}

// Both leave what was said before as another version of it.
function edit(message, text) {
  answers.stop(chat);
  ask(text, message.parent);
  rest();
}

function regenerate(message) {
  answers.stop(chat);
  if (!message.parts.length && !message.streaming && !message.pair) store.drop(chat, message); // else another tab may be writing
  answer(chat.messages.get(message.parent));
  rest();
}

// Goes on with an answer that reached its length, was stopped or was cut off.
export function resume(message) {
  if (answers.isBusy(chat)) return;
  answers.start(chat, message);
  draw();
  rest();
}
