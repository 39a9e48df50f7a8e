// The settings dialog: how this conversation is answered, and what holds for the whole page.

import { check } from "./connection.js";
import { current, draw } from "./conversation.js";
import { $, directionOf } from "./dom.js";
import { OPTIONS, saveSettings, settings, watchSettings } from "./options.js";
import { removeChats } from "./sidebar.js";
import * as store from "./store.js";

const FIELDS = {
  system: "system", temperature: "temperature", "top-k": "topK", "top-p": "topP", "min-p": "minP", "max-tokens": "maxTokens",
  seed: "seed", "stop-strings": "stop",
};

function fill() {
  for (const [id, key] of Object.entries(FIELDS)) $(id).value = current().options[key];
  for (const [id, key] of [["theme", "theme"], ["api-key", "apiKey"]]) $(id).value = settings[key];
  showValues();
}

function showValues() {
  for (const id of ["temperature", "top-p", "min-p"]) $(`${id}-shown`).textContent = Number($(id).value).toFixed(2);
  $("system").dir = directionOf($("system").value);
  if (settings.theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = settings.theme;
}

// What a field says, undefined where it says nothing that holds.
function valueOf(id, key) {
  const { value, validity } = $(id);
  if (typeof OPTIONS[key] === "string") return validity.valid ? value : undefined;
  return value !== "" && validity.valid ? Number(value) : undefined;
}

function keep() {
  const { options } = current();
  for (const [id, key] of Object.entries(FIELDS)) options[key] = valueOf(id, key) ?? options[key];
  store.saveHead(current());
  saveSettings({ ...($("for-new").checked && options), theme: $("theme").value, apiKey: $("api-key").value });
  showValues();
}

export function openSettings(field) {
  fill();
  if (!$("settings").open) $("settings").showModal();
  if (field) $(field).focus();
}

export function setUpSettings() {
  for (const id of [...Object.keys(FIELDS), "theme", "api-key", "for-new"]) $(id).addEventListener("input", keep);
  watchSettings(() => (current().messages.size ? showValues() : fill()));
  $("api-key").addEventListener("change", check);
  $("reset").addEventListener("click", () => {
    Object.assign(current().options, OPTIONS);
    fill();
    keep();
  });
  $("delete-all").addEventListener("click", () => {
    if (window.confirm("Delete all conversations in this browser?")) removeChats(store.allChats());
  });
  $("open-settings").addEventListener("click", () => openSettings());
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog) dialog.close(); // the backdrop
    });
  }
  $("settings").addEventListener("close", draw);
  showValues();
}
