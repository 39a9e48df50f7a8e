// The list of conversations: search, rename, export, import, delete and undo; a drawer on a narrow screen.

import * as answers from "./answers.js";
import { current, draw, show } from "./conversation.js";
import { $, button, download, element, isSend, notice, rest } from "./dom.js";
import * as store from "./store.js";
import { exportJson, importJson } from "./transfer.js";

const deleted = []; // lists of conversations that Undo brings back, the last one first
let renaming = null; // id

const nameOf = (chat) => chat.title || (chat.kind === "text" ? "New text" : "New chat");

// ---- the list

function entry(chat) {
  if (renaming === chat.id) return renameBox(chat);
  const open = button(nameOf(chat), "open", () => openChat(chat));
  open.dir = "auto";
  if (chat.id === current().id) open.setAttribute("aria-current", "true");
  open.addEventListener("dblclick", () => rename(chat));
  open.addEventListener("keydown", (event) => {
    if (event.key === "F2") rename(chat);
    if (event.key === "Delete") removeChats([chat]);
  });
  const item = element("li", answers.isBusy(chat) ? "busy" : "", open,
    button("✎", "rename", () => rename(chat), `Rename “${nameOf(chat)}”`),
    button("⤓", "save", () => exportChats([chat]), `Export “${nameOf(chat)}”`),
    button("✕", "remove", () => removeChats([chat]), `Delete “${nameOf(chat)}”`));
  item.dataset.id = chat.id;
  return item;
}

export function drawList() {
  const focused = $("chats").contains(document.activeElement) ? document.activeElement : null;
  if (focused?.tagName === "INPUT" && renaming) return; // drawn when the new name is there
  const query = $("search").value;
  const entries = store.allChats(query).map(entry);
  const at = focused && [...$("chats").children].indexOf(focused.parentNode);
  $("chats").replaceChildren(...entries);
  $("nothing").hidden = entries.length > 0 || !query;
  if (!focused) return;
  const item = entries.find((one) => one.dataset.id === focused.parentNode.dataset.id);
  if (item) item.querySelector(`.${focused.className}`)?.focus();
  else (entries[Math.min(at, entries.length - 1)]?.querySelector(".open") || $("new-chat")).focus(); // its neighbour
}

export function openChat(next) {
  if (next.id !== current().id) show(next); // an answer goes on while the reader looks elsewhere
  closeSidebar();
  rest();
}

function rename(chat) {
  renaming = chat.id;
  drawList();
  const box = $("chats").querySelector("input");
  box.focus();
  box.select();
}

function renameBox(chat) {
  const box = element("input", "new-name");
  box.value = chat.title;
  box.dir = "auto";
  box.setAttribute("aria-label", "New name");
  const end = (keep) => {
    if (renaming !== chat.id) return;
    renaming = null;
    if (keep && box.value.trim()) {
      chat.title = box.value.trim().slice(0, 200);
      store.saveHead(chat);
    }
    const had = document.activeElement === box;
    draw();
    if (had) $("chats").querySelector(`[data-id="${chat.id}"] .open`)?.focus();
  };
  box.addEventListener("keydown", (event) => {
    if (isSend(event)) end(true);
    else if (event.key === "Escape" && !event.isComposing) end(false);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  box.addEventListener("blur", () => end(true));
  const item = element("li", "", box);
  item.dataset.id = chat.id;
  return item;
}

// ---- delete and undo

export function removeChats(all) {
  for (const one of all) {
    answers.stop(one);
    store.remove(one);
  }
  gone(all, "deleted");
}

function gone(all, how) {
  deleted.push(all);
  if (all.some(({ id }) => id === current().id)) show(store.newChat());
  else drawList();
  offerUndo(all.length === 1 ? `The conversation is ${how}.` : `${all.length} conversations are ${how}.`);
}

function offerUndo(text) {
  notice(text, { label: "Undo", seconds: 20, action: () => {
    const all = deleted.pop();
    all.forEach(store.restore);
    if (!current().messages.size && all.length === 1) show(all[0]);
    else drawList();
    if (deleted.length) offerUndo("More was deleted before.");
  } });
}

// Another tab wrote or deleted conversations.
export function heard() {
  for (const one of answers.busyChats()) if (store.find(one.id) !== one) answers.stop(one);
  const chat = current();
  if (chat.messages.size && store.find(chat.id) !== chat) gone([chat], "deleted in another tab");
  else drawList();
}

// ---- files

export function exportChats(chats) {
  const day = new Date().toISOString().slice(0, 10);
  const name = chats.length === 1 ? nameOf(chats[0]).replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40) : "conversations";
  download(`nutshell-${name}-${day}.json`, exportJson(chats));
}

async function importFile() {
  const [file] = $("import-file").files;
  $("import-file").value = ""; // so that the same file can be chosen again
  try {
    const read = importJson(await file.text());
    store.merge(read);
    notice(`Conversations read from ${file.name}: ${read.length}.`);
  } catch (error) {
    notice(`${file.name} was not read: ${error.message}.`);
  }
  draw();
}

// ---- the drawer

export function closeSidebar() {
  setSidebar(false);
}

function setSidebar(open) {
  document.body.classList.toggle("sidebar-open", open);
  $("scrim").hidden = !open;
  $("open-sidebar").setAttribute("aria-expanded", String(open));
  if (open) $("new-chat").focus();
}

export function setUpSidebar() {
  $("new-chat").addEventListener("click", () => openChat(store.newChat()));
  $("search").addEventListener("input", drawList);
  $("export").addEventListener("click", () => exportChats(store.allChats()));
  $("import").addEventListener("click", () => $("import-file").click());
  $("import-file").addEventListener("change", importFile);
  $("open-sidebar").addEventListener("click", () => setSidebar(!document.body.classList.contains("sidebar-open")));
  $("scrim").addEventListener("click", () => setSidebar(false));
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !document.body.classList.contains("sidebar-open")) return;
    setSidebar(false);
    $("open-sidebar").focus();
  });
}
