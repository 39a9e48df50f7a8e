// The sidebar, the settings and the notice line.

import * as store from "./store.js";

const $ = (id) => document.getElementById(id);

export function setUpPanels(values, { deleteAll, keyChanged, system, setSystem, imported, rest }) {
  // ---- notice
  let timer = 0;
  function notice(text, choice) {
    clearTimeout(timer);
    const line = $("notice");
    line.replaceChildren(text);
    line.hidden = !text;
    if (!choice) return;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = choice.label;
    button.addEventListener("click", () => {
      notice("");
      rest();
      choice.action();
    });
    line.append(" ", button);
    if (choice.seconds) timer = setTimeout(() => notice(""), choice.seconds * 1000);
  }

  // ---- sidebar, a drawer on a narrow screen
  function setSidebar(open) {
    document.body.classList.toggle("sidebar-open", open);
    $("scrim").hidden = !open;
    $("open-sidebar").setAttribute("aria-expanded", String(open));
    if (open) $("new-chat").focus();
  }
  $("open-sidebar").addEventListener("click", () => setSidebar(!document.body.classList.contains("sidebar-open")));
  $("scrim").addEventListener("click", () => setSidebar(false));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && document.body.classList.contains("sidebar-open")) {
      setSidebar(false);
      $("open-sidebar").focus();
    }
  });

  function exportAll() {
    const blob = new Blob([store.exportJson()], { type: "application/json" });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `nutshell-${new Date().toISOString().slice(0, 10)}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }
  $("export").addEventListener("click", exportAll);
  $("import").addEventListener("click", () => $("import-file").click());
  $("import-file").addEventListener("change", async () => {
    const [file] = $("import-file").files;
    $("import-file").value = ""; // so that the same file can be chosen again
    try {
      notice(`Conversations read from ${file.name}: ${store.importJson(await file.text())}.`);
    } catch (error) {
      notice(`${file.name} was not read: ${error.message}.`);
    }
    imported();
  });

  // ---- settings
  const numbers = { temperature: "temperature", "max-tokens": "maxTokens", "top-k": "topK" };
  const texts = { theme: "theme", "api-key": "apiKey" };

  function fill() {
    for (const [id, key] of Object.entries({ ...numbers, ...texts })) $(id).value = values[key];
    $("system").value = system();
    apply();
  }
  function apply() {
    $("temperature-shown").textContent = Number(values.temperature).toFixed(2);
    if (values.theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = values.theme;
  }
  function keep() {
    for (const [id, key] of Object.entries(numbers)) {
      const number = Number($(id).value);
      if ($(id).value !== "" && $(id).validity.valid && Number.isFinite(number)) values[key] = number;
    }
    for (const [id, key] of Object.entries(texts)) values[key] = $(id).value;
    store.saveSettings(values);
    apply();
  }
  for (const id of [...Object.keys(numbers), ...Object.keys(texts)]) $(id).addEventListener("input", keep);
  $("system").addEventListener("input", () => {
    values.system = $("system").value; // new conversations begin with it
    store.saveSettings(values);
    setSystem(values.system);
  });
  window.addEventListener("storage", (event) => { // another tab has other settings now
    if (event.key !== store.SETTINGS) return;
    Object.assign(values, store.settings());
    fill();
  });
  $("api-key").addEventListener("change", keyChanged);
  $("reset").addEventListener("click", () => {
    Object.assign(values, store.DEFAULTS, { apiKey: values.apiKey });
    store.saveSettings(values);
    setSystem(values.system);
    fill();
  });
  $("delete-all").addEventListener("click", () => {
    if (window.confirm("Delete all conversations in this browser?")) deleteAll();
  });
  function openSettings(field) {
    fill();
    if (!$("settings").open) $("settings").showModal();
    if (field) $(field).focus();
  }
  $("open-settings").addEventListener("click", () => openSettings());
  $("settings").addEventListener("click", (event) => {
    if (event.target === $("settings")) $("settings").close(); // the backdrop
  });
  apply();
  return { notice, openSettings, exportAll, closeSidebar: () => setSidebar(false) };
}
