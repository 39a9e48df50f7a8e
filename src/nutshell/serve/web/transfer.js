// Conversations as files: export, import, and what an older version of the page kept in localStorage.

import { checked, defaults } from "./options.js";
import { contentOf, newChat } from "./store.js";

const isId = (value) => typeof value === "string" && /^[\w-]{1,80}$/.test(value);
const TYPES = ["text", "python", "python_output"];
const text = (value) => (typeof value === "string" ? value : "");

export function exportJson(chats) {
  const conversations = chats.map(({ messages, updated, ...head }) => ({
    ...head,
    updated: new Date(updated).toISOString(),
    messages: [...messages.values()].sort((one, other) => one.at - other.at).map(({ text: _, parts, streaming, ...one }) => (
      { ...one, content: contentOf(messages.get(one.id)) })),
  }));
  return JSON.stringify({ format: "nutshell-conversations", version: 3, conversations }, null, 2);
}

// The conversations of an export of any version. Throws where one of them is none: all or nothing.
export function importJson(json) {
  let data = null;
  try {
    data = JSON.parse(json);
  } catch { /* below */ }
  const read = Array.isArray(data?.conversations) ? data.conversations.map(fromList) : [null];
  if (read.includes(null)) throw new Error("it is not an export of this page");
  return read;
}

function fromList(raw) {
  if (!raw || !Array.isArray(raw.messages)) return null;
  const chat = newChat({
    title: text(raw.title),
    updated: Date.parse(raw.updated) || Number(raw.updated) || 0,
    kind: raw.kind === "text" ? "text" : "chat",
    model: text(raw.model),
    options: checked(raw.options ?? { ...defaults(), system: text(raw.system) }),
  });
  if (isId(raw.id)) chat.id = raw.id;
  for (const [index, one] of raw.messages.entries()) {
    if (one?.role === "system") chat.options.system = text(one.content);
    if (one?.role !== "user" && one?.role !== "assistant") continue;
    const message = fromEntry(one, index, chat);
    if (!message) return null;
    chat.messages.set(message.id, message);
    chat.leaf = message.id;
  }
  if (chat.messages.has(raw.leaf)) chat.leaf = raw.leaf;
  return chat;
}

// Only fields that we know, of the types that we expect.
function fromEntry(one, index, chat) {
  const content = one.content ?? one.text ?? one.parts;
  const parts = Array.isArray(content) ? content : [{ type: "text", text: content }];
  if (!parts.every((part) => typeof part?.text === "string" && TYPES.includes(part.type))) return null;
  const words = Object.fromEntries(["note", "error", "stats", "model", "pair", "finish", "rating", "better"]
    .filter((key) => typeof one[key] === "string").map((key) => [key, one[key]]));
  return {
    id: isId(one.id) && !chat.messages.has(one.id) ? one.id : `m${index}`,
    parent: one.parent === null || chat.messages.has(one.parent) ? one.parent : chat.leaf, // without: the one before
    at: Number(one.at) || index,
    role: one.role,
    ...(one.role === "user" ? { text: parts.map((part) => part.text).join("") } : { ...words, parts: parts.map(
      (part) => ({ type: part.type, text: part.text })) }),
  };
}

const OLD = "nutshell.chat.";

function oldKeys() {
  try {
    return Object.keys(localStorage).filter((key) => key.startsWith(OLD)).sort(); // "ID" comes before "ID/..."
  } catch {
    return []; // no leave to store
  }
}

// Versions 1 and 2 of the page had a key for each conversation (with its messages, or with a key for each of them).
export function fromLocalStorage() {
  const found = new Map();
  for (const key of oldKeys()) {
    const [id, part] = key.slice(OLD.length).split("/");
    try {
      const value = JSON.parse(localStorage.getItem(key));
      if (!part) found.set(id, { ...value, id, messages: [...value.messages ?? []] });
      else found.get(id)?.messages.push(value);
    } catch { /* not what we wrote: stays where it is */ }
  }
  const inOrder = (raw) => ({ ...raw, messages: raw.messages.filter(Boolean).sort((one, other) => one.at - other.at) });
  return [...found.values()].map(inOrder).map(fromList).filter(Boolean);
}

// Of the conversations that were read.
export function clearLocalStorage(read) {
  const ids = read.map(({ id }) => id);
  oldKeys().filter((key) => ids.includes(key.slice(OLD.length).split("/")[0])).forEach((key) => localStorage.removeItem(key));
}
