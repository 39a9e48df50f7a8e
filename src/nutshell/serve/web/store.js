// How a conversation is kept. All of them are in memory (`chats`), the one thing the page reads. Every change is written
// at once to localStorage, and what another tab writes comes in by `storage` events.
//
//   nutshell.chat.ID            { version: 2, id, title, updated, system, leaf }
//   nutshell.chat.ID/MESSAGE    { id, parent, at, role: "user", text } or
//                               { id, parent, at, role: "assistant", parts: [{ type, text }], streaming, note, error, stats }
//
// A part's type is "text", "python" or "python_output". Messages form a tree: an edit or a new answer is one more child of
// the same parent, so nothing is lost. `leaf` is the message that the reader sees last. A key for each message, written
// only by the tab that asked, is why two tabs in one conversation cannot overwrite each other.

const CHAT = "nutshell.chat.";
export const SETTINGS = "nutshell.settings";
const isId = (value) => typeof value === "string" && /^[\w-]{1,80}$/.test(value);

export const DEFAULTS = { system: "", temperature: 0.4, maxTokens: 256, topK: 0, theme: "auto", apiKey: "" };

const chats = new Map();
const unsaved = new Map(); // key -> value that the browser refused to keep; tried again when there is room
let onRefused = () => {};

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null; // not what we wrote
  }
}

function read(key) {
  try {
    return parse(localStorage.getItem(key));
  } catch {
    return null; // no leave to store
  }
}

// False when the browser refuses: private mode, or the quota is used up. What was stored under the key stays.
function write(key, value) {
  try {
    localStorage.setItem(key, JSON.stringify(value));
    unsaved.delete(key);
    return true;
  } catch {
    unsaved.set(key, value);
    if (unsaved.size === 1) onRefused();
    return false;
  }
}

function erase(key) {
  unsaved.delete(key);
  try {
    localStorage.removeItem(key);
  } catch { /* nothing was stored */ }
}

function keys() {
  try {
    return Object.keys(localStorage).filter((key) => key.startsWith(CHAT)).sort(); // "ID" comes before "ID/..."
  } catch {
    return [];
  }
}

export const find = (id) => chats.get(id);
export const anyUnsaved = () => unsaved.size > 0;

function newId() {
  return `${Date.now().toString(36)}-${crypto.getRandomValues(new Uint32Array(2)).join("")}`;
}

// ---- conversations

export function newChat(system) {
  return { id: newId(), title: "", updated: Date.now(), system, leaf: null, messages: new Map() };
}

// All conversations, the latest first.
export function allChats() {
  return [...chats.values()].sort((one, other) => other.updated - one.updated);
}

export function saveHead(chat) {
  if (!chats.has(chat.id)) return; // never asked anything, or deleted since
  const { id, title, updated, system, leaf } = chat;
  write(CHAT + id, { version: 2, id, title, updated, system, leaf });
}

export function saveMessage(chat, message) {
  if (chats.get(chat.id)?.messages.has(message.id)) write(`${CHAT}${chat.id}/${message.id}`, message);
}

// One more message below `parent`; the reader sees it from now on.
export function add(chat, message, parent) {
  const after = (chat.messages.get(parent)?.at ?? 0) + 1; // in order, whatever the clock does
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
  erase(`${CHAT}${chat.id}/${message.id}`);
  if (chat.leaf === message.id) chat.leaf = message.parent;
}

export function remove(chat) {
  chats.delete(chat.id);
  erase(CHAT + chat.id);
  for (const id of chat.messages.keys()) erase(`${CHAT}${chat.id}/${id}`);
  for (const [key, value] of unsaved) write(key, value); // there may be room now
}

export function restore(chat) {
  chats.set(chat.id, chat);
  takeMessages(chat.id); // another tab may have restored it and gone on
  for (const message of chat.messages.values()) saveMessage(chat, message);
  saveHead(chat); // last: it tells the other tabs
}

function childrenOf(chat) {
  const children = new Map();
  for (const message of chat.messages.values()) {
    if (!children.has(message.parent)) children.set(message.parent, []);
    children.get(message.parent).push(message);
  }
  for (const list of children.values()) list.sort((one, other) => one.at - other.at || (one.id < other.id ? -1 : 1));
  return children;
}

// The messages from the first one to `leaf`, each with its siblings.
export function thread(chat, leaf = chat.leaf) {
  const children = childrenOf(chat);
  const result = [];
  for (let one = chat.messages.get(leaf); one && result.length <= chat.messages.size; one = chat.messages.get(one.parent)) {
    result.push({ message: one, siblings: children.get(one.parent) });
  }
  return result.reverse();
}

// Show the branch of this message (null: from the start), down to its latest end.
export function follow(chat, id) {
  const children = childrenOf(chat);
  let leaf = id;
  for (let left = chat.messages.size; left > 0 && children.has(leaf); left -= 1) leaf = children.get(leaf).at(-1).id;
  chat.leaf = leaf;
}

// ---- reading what is stored, here or by another tab

function isMessage(one) {
  return Boolean(one) && (one.role === "user" ? typeof one.text === "string"
    : Array.isArray(one.parts) && one.parts.every((part) => part && typeof part.type === "string" && typeof part.text === "string"));
}

// A conversation as a list: of an export, or of what version 1 stored. Null when it is none.
function fromList(raw) {
  if (!raw || !Array.isArray(raw.messages)) return null;
  const text = (value) => (typeof value === "string" ? value : "");
  const chat = { ...newChat(text(raw.system)), title: text(raw.title), updated: Date.parse(raw.updated) || Number(raw.updated) || 0 };
  if (isId(raw.id)) chat.id = raw.id;
  for (const [index, one] of raw.messages.entries()) {
    if (one?.role === "system") chat.system = text(one.content);
    if (one?.role !== "user" && one?.role !== "assistant") continue;
    const content = one.content ?? one.text ?? one.parts;
    const parts = Array.isArray(content) ? content : [{ type: "text", text: content }];
    if (!parts.every((part) => typeof part?.text === "string")) return null;
    const { note, error, stats } = one;
    const message = {
      id: isId(one.id) ? one.id : `m${index}`,
      parent: one.parent === null || chat.messages.has(one.parent) ? one.parent : chat.leaf, // without: the one before
      at: Number(one.at) || index,
      role: one.role,
      ...(one.role === "user" ? { text: parts.map((part) => part.text).join("") } : { parts, note, error, stats }),
    };
    if (!isMessage(message)) return null;
    chat.messages.set(message.id, message);
    chat.leaf = message.id;
  }
  if (chat.messages.has(raw.leaf)) chat.leaf = raw.leaf;
  return chat;
}

function takeHead(id, raw) {
  const known = chats.get(id);
  if (!raw) {
    chats.delete(id);
    for (const key of unsaved.keys()) if (key.startsWith(CHAT + id)) unsaved.delete(key);
    return;
  }
  if (known) {
    for (const field of ["title", "system", "updated"]) known[field] = raw[field]; // each tab looks at its own branch
    return;
  }
  if (raw.version !== 2) {
    const old = fromList(raw);
    if (old) restore(Object.assign(old, { id }));
    return;
  }
  chats.set(id, { ...raw, messages: new Map() });
  takeMessages(id);
  follow(chats.get(id), chats.get(id).messages.has(raw.leaf) ? raw.leaf : null);
}

function takeMessages(id) {
  const start = `${CHAT}${id}/`;
  const known = chats.get(id).messages;
  for (const key of keys().filter((one) => one.startsWith(start))) {
    if (!known.has(key.slice(start.length))) takeMessage(id, key.slice(start.length), read(key));
  }
}

function takeMessage(id, part, message) {
  const chat = chats.get(id);
  if (!chat) return;
  if (!message) {
    if (chat.leaf === part) chat.leaf = chat.messages.get(part)?.parent ?? null;
    chat.messages.delete(part);
  } else if (isMessage(message)) {
    const known = chat.messages.get(part);
    if (known) Object.assign(known, message);
    else chat.messages.set(part, message);
    if (!known && message.parent === chat.leaf) chat.leaf = part;
  }
}

// Read all that is stored. `refused` is called when the browser will not keep something, `changed(id, message id)` after
// another tab wrote; the message is undefined for the conversation itself, both are when the storage was cleared.
export function open({ refused, changed }) {
  onRefused = refused;
  for (const key of keys()) {
    const [id, part] = key.slice(CHAT.length).split("/");
    if (!part) takeHead(id, read(key));
    else if (!chats.has(id)) erase(key); // written by a tab while another deleted the conversation
  }
  window.addEventListener("storage", (event) => {
    if (event.key === null) chats.clear();
    else if (!event.key.startsWith(CHAT)) return;
    const [id, part] = event.key?.slice(CHAT.length).split("/") ?? [];
    if (part) takeMessage(id, part, parse(event.newValue));
    else if (id) takeHead(id, parse(event.newValue));
    changed(id, part);
  });
}

// ---- settings, and what leaves the browser

export function settings() {
  const known = read(SETTINGS);
  const result = { ...DEFAULTS };
  for (const key of Object.keys(DEFAULTS)) {
    if (known && typeof known[key] === typeof DEFAULTS[key]) result[key] = known[key];
  }
  return result;
}

export function saveSettings(values) {
  write(SETTINGS, values);
}

// Answers with tool calls go as parts, so that the model sees them as they were.
function contentOf({ role, text, parts }) {
  if (role === "user") return text;
  return parts.every((part) => part.type === "text") ? parts.map((part) => part.text).join("") : parts;
}

// The messages from the first one to `leaf` as the API takes them.
export function apiMessages(chat, leaf) {
  const said = thread(chat, leaf).map(({ message }) => ({ role: message.role, content: contentOf(message) }));
  const system = chat.system.trim() ? [{ role: "system", content: chat.system }] : [];
  return [...system, ...said.filter(({ content }) => content.length)];
}

export function exportJson() {
  const conversations = allChats().map(({ messages, updated, ...head }) => ({
    ...head,
    updated: new Date(updated).toISOString(),
    messages: [...messages.values()].sort((one, other) => one.at - other.at).map(({ text, parts, streaming, ...one }) => (
      { ...one, content: contentOf({ ...one, text, parts }) })),
  }));
  return JSON.stringify({ format: "nutshell-conversations", version: 2, conversations }, null, 2);
}

// Adds what an export has. Conversations that are here already gain the messages they lack. Returns how many were read.
export function importJson(text) {
  const data = parse(text);
  const read = Array.isArray(data?.conversations) ? data.conversations.map(fromList) : [null];
  if (read.includes(null)) throw new Error("it is not an export of this page"); // all or nothing
  for (const chat of read) {
    const known = chats.get(chat.id);
    if (!known) restore(chat);
    for (const one of known ? chat.messages.values() : []) {
      if (known.messages.has(one.id)) continue;
      known.messages.set(one.id, one);
      saveMessage(known, one);
    }
  }
  return read.length;
}
