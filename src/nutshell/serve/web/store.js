// Conversations and settings in localStorage, one key for each conversation so that two tabs do not undo each other.
//
// A conversation: { id, title, updated, system, messages }. A message: { role: "user", text } or
// { role: "assistant", parts: [{ type: "text" | "python" | "python_output", text }], note, error, stats }.

const CHAT = "nutshell.chat.";
const SETTINGS = "nutshell.settings";

export const DEFAULTS = { system: "", temperature: 0.4, maxTokens: 256, topK: 0, theme: "auto", apiKey: "" };

function read(key) {
  try {
    return JSON.parse(localStorage.getItem(key));
  } catch {
    return null; // no leave to store, or not what we wrote
  }
}

// False when the browser refuses: private mode, or the quota is used up.
function write(key, value) {
  try {
    localStorage.setItem(key, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

function isChat(chat) {
  return Boolean(chat && typeof chat.id === "string" && Array.isArray(chat.messages)
    && chat.messages.every((one) => (one.role === "user" ? typeof one.text === "string" : Array.isArray(one.parts))));
}

export function newChat() {
  const random = crypto.getRandomValues(new Uint32Array(2));
  return { id: `${Date.now().toString(36)}-${random.join("")}`, title: "", updated: Date.now(), messages: [] };
}

// All conversations, the latest first.
export function allChats() {
  const chats = [];
  try {
    for (let index = 0; index < localStorage.length; index += 1) {
      const key = localStorage.key(index);
      if (key.startsWith(CHAT)) chats.push(read(key));
    }
  } catch { /* no storage at all */ }
  return chats.filter(isChat).sort((one, other) => other.updated - one.updated);
}

export function saveChat(chat) {
  return write(CHAT + chat.id, chat);
}

export function deleteChat(id) {
  try {
    localStorage.removeItem(CHAT + id);
  } catch { /* nothing was stored */ }
}

export function settings() {
  const known = read(SETTINGS);
  const result = { ...DEFAULTS };
  for (const key of Object.keys(DEFAULTS)) {
    if (known && typeof known[key] === typeof DEFAULTS[key]) result[key] = known[key];
  }
  return result;
}

export function saveSettings(values) {
  return write(SETTINGS, values);
}

// The messages as the API takes them. Answers with tool calls go as parts, so that the model sees them as they were.
export function apiMessages(chat, system) {
  const messages = system.trim() ? [{ role: "system", content: system }] : [];
  for (const message of chat.messages) {
    if (message.role === "user") {
      messages.push({ role: "user", content: message.text });
    } else if (message.parts.length) {
      const plain = message.parts.every((part) => part.type === "text");
      const content = plain ? message.parts.map((part) => part.text).join("") : message.parts;
      messages.push({ role: "assistant", content });
    }
  }
  return messages;
}

export function exportJson(chats) {
  const conversations = chats.map((chat) => ({
    id: chat.id, title: chat.title, updated: new Date(chat.updated).toISOString(), messages: apiMessages(chat, ""),
  }));
  return JSON.stringify({ format: "nutshell-conversations", version: 1, conversations }, null, 2);
}
