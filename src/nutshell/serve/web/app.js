// The page: puts its parts together; the box below, keys, leaving and coming back.

import * as answers from "./answers.js";
import { EXAMPLES, fitBox } from "./composer.js";
import { check, connect } from "./connection.js";
import * as conversation from "./conversation.js";
import { $, button, isSend, notice, rest } from "./dom.js";
import { drawModels, setUpModels } from "./models.js";
import { openSettings, setUpSettings } from "./settings.js";
import { drawList, exportChats, heard, openChat, setUpSidebar } from "./sidebar.js";
import * as store from "./store.js";
import { clearLocalStorage, fromLocalStorage } from "./transfer.js";

// ---- the box below. What is written there and not yet sent belongs to its conversation, in this tab.

const question = $("question");
const draftKey = () => `nutshell.draft.${conversation.current().messages.size ? conversation.current().id : "new"}`;
let draftOf = null;

function fitQuestion() {
  fitBox(question);
  $("send").disabled = !question.value.trim() && !canGoOn();
}

function keepDraft() {
  try {
    if (question.value) sessionStorage.setItem(draftKey(), question.value);
    else sessionStorage.removeItem(draftKey());
  } catch { /* no leave to store */ }
}

function showDraft() {
  const chat = conversation.current();
  if (draftOf !== chat.id) {
    draftOf = chat.id;
    try {
      question.value = sessionStorage.getItem(draftKey()) ?? "";
    } catch { /* no leave to store */ }
  }
  fitQuestion();
}

// A text goes on without a word of the reader's.
function canGoOn() {
  const chat = conversation.current();
  return chat.kind === "text" && chat.messages.get(chat.leaf)?.role === "assistant";
}

function submit() {
  const text = question.value;
  const chat = conversation.current();
  if (answers.isBusy(chat)) return;
  if (!text && canGoOn()) conversation.resume(chat.messages.get(chat.leaf));
  if (!text.trim()) return;
  question.value = "";
  keepDraft(); // below the name that it had
  fitQuestion();
  conversation.ask(text);
}

question.addEventListener("input", () => {
  keepDraft();
  fitQuestion();
});
question.addEventListener("keydown", (event) => {
  if (isSend(event)) {
    event.preventDefault();
    submit();
  } else if (event.key === "ArrowUp" && !question.value) {
    const all = document.querySelectorAll("article.user .edit");
    if (!all.length || answers.isBusy(conversation.current())) return;
    event.preventDefault(); // else the key moves the cursor in the box that opens
    all[all.length - 1].click();
  }
});
$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
$("stop").addEventListener("click", () => stop());

function stop() {
  answers.stop(conversation.current());
  conversation.draw();
}

// ---- keys

const KEYS = {
  o: () => openChat(store.newChat()),
  f: () => {
    if ($("open-sidebar").offsetParent && !document.body.classList.contains("sidebar-open")) $("open-sidebar").click();
    $("search").focus();
  },
};

document.addEventListener("keydown", (event) => {
  if (event.isComposing || document.querySelector("dialog[open]")) return;
  if (event.key === "Escape") stop();
  const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement.tagName);
  if (event.key === "?" && (!typing || (document.activeElement === question && !question.value && event.ctrlKey))) {
    event.preventDefault();
    $("keys").showModal();
  }
  const act = event.shiftKey && (event.ctrlKey || event.metaKey) && KEYS[event.key.toLowerCase()];
  if (!act) return;
  event.preventDefault();
  act();
});
$("open-keys").addEventListener("click", () => $("keys").showModal());

// ---- leaving

window.addEventListener("pagehide", answers.saveAll);
window.addEventListener("beforeunload", (event) => {
  if (store.anyUnsaved()) event.preventDefault(); // the browser asks whether to leave
});

// ---- begin

function onScreenChanged() {
  drawModels();
  drawList();
  showDraft();
}

await store.open({
  changed: (id, part) => {
    heard();
    if (id === conversation.current().id) conversation.changed(part);
  },
  refused: () => notice("This browser does not keep this conversation (private mode, or its storage is full). It is lost when you "
    + "close the page.", { label: "Export all as JSON", action: () => exportChats(store.allChats()) }),
});
const old = fromLocalStorage();
if (await store.merge(old)) clearLocalStorage(old);
conversation.setUp({ drawn: onScreenChanged, needsKey: () => openSettings("api-key") });
conversation.show(store.allChats().find(({ id }) => `#${id}` === location.hash) ?? store.newChat());
setUpSidebar();
setUpSettings();
setUpModels();
for (const text of EXAMPLES) $("examples").append(button(text, "example", () => {
  conversation.ask(text);
  rest();
}));
connect({ changed: conversation.draw, key: () => openSettings("api-key") });
window.addEventListener("online", check);
window.addEventListener("hashchange", () => {
  const chat = store.allChats().find(({ id }) => `#${id}` === location.hash);
  if (chat) openChat(chat);
});
document.documentElement.dataset.ready = ""; // for those who drive the page
