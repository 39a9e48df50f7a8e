// The conversations. All of them are in memory (`chats`), the one thing the page reads; every change is written at once (db.js),
// and what another tab writes comes in.
//
//   chats      ID          { version: 3, id, title, updated, leaf, kind, model, compare, options }
//   messages   ID/MESSAGE  { id, parent, at, role: "user", text } or
//                          { id, parent, at, role: "assistant", parts: [{ type, text }], streaming, model, pair, ... }
//
// A part's type is "text", "python" or "python_output". Messages form a tree: an edit or a new answer is one more child of
// the same parent, so nothing is lost. `leaf` is the message that the reader sees last. A record for each message, written
// only by the tab that asked, is why two tabs in one conversation cannot overwrite each other. Answers of one `pair` are
// those of two models to one question, shown side by side. A chat of kind "text" is a text that the model goes on with.

import * as db from "./db.js";
import { defaults } from "./options.js";

const chats = new Map();
export const find = (id) => chats.get(id);
export const { anyUnsaved } = db;

export function newId() {
  return `${Date.now().toString(36)}-${crypto.getRandomValues(new Uint32Array(2)).join("")}`;
}

export function newChat(fields = {}) {
  return {
    id: newId(), title: "", updated: Date.now(), leaf: null, kind: "chat", model: "", compare: "", options: defaults(), ...fields,
    messages: new Map(),
  };
}

// All conversations, the latest first; those that have every word of `query` in their title or messages.
export function allChats(query = "") {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  const said = (chat) => [chat.title, ...[...chat.messages.values()].map(plainText)].join("\n").toLowerCase();
  const found = [...chats.values()].filter((chat) => !words.length || words.every((word) => said(chat).includes(word)));
  return found.sort((one, other) => other.updated - one.updated);
}

export function plainText({ role, text, parts }) {
  return role === "user" ? text : parts.filter(({ type }) => type === "text").map((part) => part.text).join("").trim();
}

// ---- writing

export function saveHead(chat) {
  const { messages, ...head } = chat;
  return chats.has(chat.id) && db.put("chats", chat.id, { version: 3, ...head }); // else never asked anything, or deleted since
}

export function saveMessage(chat, message) {
  return chats.get(chat.id)?.messages.has(message.id) && db.put("messages", `${chat.id}/${message.id}`, message);
}

// One more message below `parent`; the reader sees it from now on.
export function add(chat, message, parent) {
  let after = 0; // in order, whatever the clock does, also within a millisecond
  for (const { at } of chat.messages.values()) after = Math.max(after, at + 1);
  const added = Object.assign(message, { id: newId(), parent, at: Math.max(Date.now(), after) });
  chats.set(chat.id, chat);
  chat.messages.set(added.id, added);
  chat.leaf = added.id;
  chat.updated = Date.now();
  saveHead(chat);
  saveMessage(chat, added);
  return added;
}

// Only for an answer that has no text.
export function drop(chat, message) {
  chat.messages.delete(message.id);
  db.put("messages", `${chat.id}/${message.id}`);
  if (chat.leaf === message.id) chat.leaf = message.parent;
}

export function remove(chat) {
  chats.delete(chat.id);
  db.put("chats", chat.id);
  for (const id of chat.messages.keys()) db.put("messages", `${chat.id}/${id}`);
}

export function restore(chat) {
  const known = chats.get(chat.id); // another tab may have restored it and gone on
  for (const [id, message] of known?.messages ?? []) if (!chat.messages.has(id)) chat.messages.set(id, message);
  chats.set(chat.id, chat);
  return [saveHead(chat), ...[...chat.messages.values()].map((message) => saveMessage(chat, message))];
}

// Adds conversations that were read from a file. One that is here already gains the messages it lacks. Whether all is kept.
export async function merge(read) {
  const writes = read.flatMap((chat) => {
    const known = chats.get(chat.id);
    if (!known) return restore(chat);
    const missing = [...chat.messages.values()].filter(({ id }) => !known.messages.has(id));
    missing.forEach((one) => known.messages.set(one.id, one));
    return missing.map((one) => saveMessage(known, one));
  });
  return (await Promise.all(writes)).every(Boolean);
}

// ---- the tree

function childrenOf(chat) {
  const children = new Map();
  for (const message of chat.messages.values()) {
    if (!children.has(message.parent)) children.set(message.parent, []);
    children.get(message.parent).push(message);
  }
  for (const list of children.values()) list.sort((one, other) => one.at - other.at || (one.id < other.id ? -1 : 1));
  return children;
}

// The messages from the first one to `leaf`, each with its `pair` (itself alone, or two side by side) and with all `versions`
// of its place, one of each pair.
export function thread(chat, leaf = chat.leaf) {
  const children = childrenOf(chat);
  const result = [];
  for (let one = chat.messages.get(leaf); one && result.length <= chat.messages.size; one = chat.messages.get(one.parent)) {
    const message = one;
    const siblings = children.get(one.parent);
    const pair = siblings.filter((other) => other === message || (other.pair && other.pair === message.pair));
    const versions = siblings.filter((other, index) => (pair.includes(other) ? other === message
      : !other.pair || siblings.findIndex(({ pair: name }) => name === other.pair) === index));
    result.push({ message, pair, versions });
  }
  return result.reverse();
}

// Show the branch of this message (null: from the start), down to its latest end.
export function follow(chat, id) {
  const children = childrenOf(chat);
  let leaf = id;
  for (let left = chat.messages.size; left > 0 && children.has(leaf); left -= 1) {
    const last = children.get(leaf).at(-1);
    leaf = (last.pair ? children.get(leaf).find(({ pair }) => pair === last.pair) : last).id; // the left one of two
  }
  chat.leaf = leaf;
}

// Answers with tool calls go as parts, so that the model sees them as they were.
export function contentOf({ role, text, parts }) {
  if (role === "user") return text;
  return parts.every((part) => part.type === "text") ? parts.map((part) => part.text).join("") : parts;
}

const MOST_MESSAGES = 1000; // the server takes 1,024 messages and 2 MiB: more than any context
export const MOST_CHARACTERS = 600_000; // which may be three bytes each

// The messages up to `leaf` as the API takes them, and how many of the oldest are `cut` from a very long conversation.
export function sentMessages(chat, leaf) {
  const all = thread(chat, leaf).map(({ message }) => ({ role: message.role, content: contentOf(message) }));
  const said = all.filter(({ content }) => content.length);
  let room = MOST_CHARACTERS;
  const tooMuch = said.findLastIndex(({ content }) => (room -= JSON.stringify(content).length) < 0);
  let cut = Math.max(0, Math.min(tooMuch + 1, said.length - 1), said.length - MOST_MESSAGES);
  if (cut && said[cut].role === "assistant" && cut + 1 < said.length) cut += 1; // a question comes first
  const system = chat.options.system.trim() ? [{ role: "system", content: chat.options.system }] : [];
  return { messages: [...system, ...said.slice(cut)], cut };
}

export const apiMessages = (chat, leaf) => sentMessages(chat, leaf).messages;

// All that a text says up to `leaf`.
export function textUpTo(chat, leaf) {
  return thread(chat, leaf).map(({ message }) => message.text ?? message.parts.map((part) => part.text).join("")).join("");
}

// ---- reading what is stored, here or by another tab

function takeHead(id, raw) {
  const known = chats.get(id);
  if (!raw) {
    chats.delete(id);
    db.forget(`chats ${id}`);
    db.forget(`messages ${id}/`);
  } else if (known) {
    Object.assign(known, raw, { leaf: known.leaf, messages: known.messages }); // each tab looks at its own branch
  } else {
    chats.set(id, { ...newChat(), ...raw, messages: new Map() });
  }
}

function takeMessage(id, part, message) {
  const chat = chats.get(id);
  const known = chat?.messages.get(part);
  if (!chat) return;
  if (!message) {
    if (chat.leaf === part) chat.leaf = known?.parent ?? null;
    chat.messages.delete(part);
  } else if (known) {
    Object.assign(known, message);
  } else {
    chat.messages.set(part, message);
    if (message.parent === chat.leaf) chat.leaf = part;
  }
}

// Read all that is stored. `refused` is called when the browser will not keep something, `changed(id, message id)` after
// another tab wrote; the message is undefined for the conversation itself.
export async function open({ refused, changed }) {
  const heard = (table, key, value) => {
    const [id, part] = key.split("/");
    if (table === "chats") takeHead(id, value);
    else takeMessage(id, part, value);
    changed(id, part);
  };
  const kept = await db.open({ refused, heard });
  for (const [id, head] of kept.chats) chats.set(id, { ...newChat(), ...head, messages: new Map() });
  for (const [key, message] of kept.messages) {
    const [id, part] = key.split("/");
    if (chats.has(id)) chats.get(id).messages.set(part, message);
    else db.put("messages", key); // written by a tab while another deleted the conversation
  }
  for (const chat of chats.values()) if (!chat.messages.has(chat.leaf)) follow(chat, null);
  for (const chat of chats.values()) follow(chat, chat.leaf);
}
