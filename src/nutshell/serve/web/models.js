// Which stage or step of the training answers, a second one beside it, and whether it chats or goes on with a text.

import { contextOf, modelOf, refresh, server } from "./connection.js";
import { current, draw, show } from "./conversation.js";
import { $, element, rest } from "./dom.js";
import * as store from "./store.js";

function label({ id, stage, step }) {
  const parts = id.split("/");
  return parts.length > 2 ? `step ${(step ?? parts[2]).toLocaleString("en")}` : parts.length > 1 ? `${stage || parts[1]}, newest` : id;
}

function options(chosen, first) {
  const groups = new Map();
  for (const model of server.models) {
    const stage = model.id.includes("/") ? model.stage || model.id.split("/")[1] : "";
    const option = element("option", "", label(model));
    option.value = model.id;
    option.selected = model.id === chosen;
    if (!groups.has(stage)) groups.set(stage, []);
    groups.get(stage).push(option);
  }
  const nodes = [...groups].flatMap(([stage, all]) => {
    if (!stage) return all;
    const group = element("optgroup", "", ...all);
    group.label = stage;
    return [group];
  });
  return first ? [first, ...nodes] : nodes;
}

function fill(select, chosen, first) {
  const known = JSON.stringify([server.models, chosen]);
  if (select.dataset.shown === known) return; // a list that is open stays as it is
  select.dataset.shown = known;
  select.replaceChildren(...options(chosen, first));
}

// The pickers and the gauge of the conversation on screen.
export function drawModels() {
  const chat = current();
  const several = server.models.length > 1;
  const chosen = modelOf(chat.model);
  $("model").hidden = !chosen;
  $("model").disabled = !several;
  $("compare").hidden = !several || chat.kind === "text";
  $("kinds").hidden = chat.messages.size > 0 || !chosen;
  if (!chosen) return;
  fill($("model"), chosen.id);
  const none = element("option", "", "Compare with …");
  none.value = "";
  fill($("compare"), chat.compare, none);
  for (const kind of ["chat", "text"]) $(`kind-${kind}`).setAttribute("aria-pressed", String(chat.kind === kind));
  $("question").placeholder = chat.kind === "text" ? "Begin a text" : "Ask anything";
  drawGauge(chat);
}

function drawGauge(chat) {
  const context = contextOf(chat.model);
  const used = store.thread(chat).map(({ message }) => message.used).findLast(Boolean) ?? 0;
  $("gauge").hidden = !context || !used;
  if (!context) return;
  $("context").max = context;
  $("context").value = Math.min(used, context);
  $("context").high = Math.round(context * 0.85);
  $("context-said").textContent = `${used.toLocaleString("en")} of ${context.toLocaleString("en")} tokens of context`;
}

function setKind(kind) {
  show(Object.assign(current(), { kind }));
  rest();
}

function setModel(id) {
  const chat = current();
  chat.model = id;
  if (!chat.messages.size) chat.kind = modelOf(id).kind === "base" ? "text" : "chat"; // what that model can do
  if (chat.kind === "text") chat.compare = "";
  store.saveHead(chat);
  draw();
}

export function setUpModels() {
  $("model").addEventListener("change", () => setModel($("model").value));
  $("compare").addEventListener("change", () => {
    current().compare = $("compare").value;
    store.saveHead(current());
    draw();
  });
  for (const id of ["model", "compare"]) $(id).addEventListener("pointerenter", refresh);
  $("model").addEventListener("focus", refresh);
  for (const kind of ["chat", "text"]) $(`kind-${kind}`).addEventListener("click", () => setKind(kind));
}
