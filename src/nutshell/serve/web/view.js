// One message -> DOM nodes, and keeping them up to date while an answer streams.

import { copyButton, markdown } from "./markdown.js";

function element(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

export function button(label, className, onClick, title) {
  const node = element("button", className, label);
  node.type = "button";
  if (title) {
    node.title = title;
    node.setAttribute("aria-label", title);
  }
  node.addEventListener("click", onClick);
  return node;
}

export function plainText(message) {
  if (message.role === "user") return message.text;
  return message.parts.filter((part) => part.type === "text").map((part) => part.text).join("").trim();
}

// Enter sends, but never while an input method composes: Safari ends the composition first and then sends keyCode 229.
export function isSend(event) {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229;
}

// ‹ 2/3 ›: the other versions of a question or an answer.
function switcher(message, siblings, onSwitch) {
  if (siblings.length < 2) return [];
  const at = siblings.indexOf(message);
  const step = (label, to, title) => {
    const one = button(label, "", () => onSwitch(siblings[to]), title);
    one.disabled = !siblings[to];
    return one;
  };
  return [step("‹", at - 1, "Previous version"), `${at + 1}/${siblings.length}`, step("›", at + 1, "Next version")];
}

// What the model asked the calculator and what came back, on one line.
function toolBlock(expression, result) {
  const node = element("div", "tool", element("span", "tool-name", "Calculator"), element("code", "", expression));
  node.setAttribute("role", "group");
  node.setAttribute("aria-label", "Tool call");
  if (result === null) node.append(element("span", "waiting", "…"));
  else node.append(element("span", "equals", "="), element("code", "result", result));
  return node;
}

// Parts -> blocks to show: a text each, and a tool call together with its output.
function blocksOf(parts) {
  const result = [];
  for (const part of parts) {
    const last = result[result.length - 1];
    if (part.type === "python_output" && last && last.tool !== undefined && last.output === null) {
      last.output = part.text;
    } else if (part.type === "text") {
      result.push({ text: part.text });
    } else {
      result.push(part.type === "python" ? { tool: part.text, output: null } : { tool: "", output: part.text });
    }
  }
  return result;
}

// Shows an assistant's message; update() draws again only the blocks that changed.
export class AnswerView {
  constructor(message, { onRegenerate }) {
    this.message = message;
    this.body = element("div", "body");
    this.notes = element("div", "notes");
    this.stats = element("span", "stats");
    this.versions = element("span", "versions");
    const copy = copyButton(() => plainText(message));
    const again = button("Regenerate", "again", () => onRegenerate(message));
    this.tools = element("div", "actions", copy, again, this.versions, this.stats);
    this.node = element("article", "assistant", element("h3", "hidden", "Answer"), this.body, this.notes, this.tools);
    this.drawn = [];
    this.onRegenerate = onRegenerate;
    this.update(false);
  }

  setSiblings(siblings, onSwitch) {
    this.versions.replaceChildren(...switcher(this.message, siblings, onSwitch));
  }

  update(streaming) {
    const { message } = this;
    const shown = blocksOf(message.parts);
    shown.forEach((block, index) => {
      const key = JSON.stringify(block);
      if (this.drawn[index] === key) return;
      const node = element("div", "block");
      if (block.tool !== undefined) node.append(toolBlock(block.tool, block.output));
      else node.append(markdown(block.text));
      if (this.body.children[index]) this.body.children[index].replaceWith(node);
      else this.body.append(node);
      this.drawn[index] = key;
    });
    this.node.classList.toggle("streaming", streaming);
    this.node.classList.toggle("empty", shown.length === 0);
    this.tools.hidden = streaming;
    this.stats.textContent = message.streaming && !streaming ? "unfinished" : message.stats || ""; // or in another tab
    this.notes.replaceChildren();
    if (message.note) this.notes.append(element("p", "note", message.note));
    if (message.error) {
      const again = button("Try again", "", () => this.onRegenerate(message));
      this.notes.append(element("p", "error", `${message.error} `, again));
    }
  }
}

const SHOWN_CHARACTERS = 20000;

export class QuestionView {
  constructor(message, { onEdit }) {
    this.message = message;
    this.onEdit = onEdit;
    this.node = element("article", "user");
    this.versions = element("span", "versions");
    this.show();
  }

  setSiblings(siblings, onSwitch) {
    this.versions.replaceChildren(...switcher(this.message, siblings, onSwitch));
  }

  show() {
    const { message } = this;
    this.node.replaceChildren(
      element("h3", "hidden", "You"),
      this.bubble(),
      element("div", "actions", copyButton(() => message.text), button("Edit", "edit", () => this.edit()),
        this.versions),
    );
  }

  // A very long text takes seconds to lay out.
  bubble() {
    const { text } = this.message;
    const node = element("div", "bubble", text.slice(0, SHOWN_CHARACTERS));
    if (text.length > SHOWN_CHARACTERS) {
      node.append(" … ", button(`Show all ${text.length} characters`, "quiet", () => node.replaceChildren(text)));
    }
    return node;
  }

  edit() {
    const area = element("textarea", "");
    area.value = this.message.text;
    area.setAttribute("aria-label", "Edit the message");
    area.rows = Math.min(12, this.message.text.split("\n").length + 1);
    const save = () => {
      if (!area.value.trim()) return;
      this.show();
      this.onEdit(this.message, area.value);
    };
    const cancel = () => {
      this.show();
      this.node.querySelector(".edit").focus();
    };
    area.addEventListener("keydown", (event) => {
      if (isSend(event)) {
        event.preventDefault();
        save();
      } else if (event.key === "Escape" && !event.isComposing) {
        event.stopPropagation();
        cancel();
      }
    });
    const buttons = element("div", "actions shown", button("Cancel", "", cancel), button("Send", "primary", save));
    this.node.replaceChildren(element("div", "editing", area, buttons));
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
  }
}
