// One message -> DOM nodes, and keeping them up to date while an answer streams.

import { button, copyButton, directionOf, element, icon, isSend } from "./dom.js";
import { PartsView } from "./parts.js";
import { plainText } from "./store.js";

const THUMB_UP = "M7 11v9H3v-9zM7 11l4-8c2 0 3 1 3 3v4h6l-2 10H7";
const THUMB_DOWN = "M7 13V4H3v9zM7 13l4 8c2 0 3-1 3-3v-4h6L18 4H7";

// ‹ 2/3 ›: the other versions of a question or an answer.
function switcher(message, versions, onSwitch) {
  if (versions.length < 2) return [];
  const at = versions.indexOf(message);
  const step = (label, to, title) => {
    const one = button(label, "", () => onSwitch(versions[to]), title);
    one.disabled = !versions[to];
    return one;
  };
  return [step("‹", at - 1, "Previous version"), `${at + 1}/${versions.length}`, step("›", at + 1, "Next version")];
}

// Shows an assistant's message. `on` has what its buttons do: regenerate,
// resume, tokens, rate, better, choose. A `plain` one is part of a text, without Markdown.
export class AnswerView {
  constructor(message, on, plain) {
    Object.assign(this, { message, on, body: new PartsView(plain), tokensShown: false });
    this.name = element("div", "name");
    this.notes = element("div", "notes");
    this.below = element("div", "below"); // of the token view and the better answer
    this.stats = element("span", "stats");
    this.versions = element("span", "versions");
    const act = (label, name) => button(label, name, () => on[name](message, this));
    this.buttons = {
      again: act("Regenerate", "regenerate"), resume: act("Continue", "resume"), tokens: act("Tokens", "tokens"),
      choose: act("Go on with this one", "choose"),
      up: button(icon(THUMB_UP), "rate", () => on.rate(message, this, "up"), "Good answer"),
      down: button(icon(THUMB_DOWN), "rate", () => on.rate(message, this, "down"), "Bad answer"),
      better: act("Better answer", "better"),
    };
    const { again, resume, tokens, choose, up, down, better } = this.buttons;
    this.actions = element("div", "actions", copyButton(() => plainText(message)), again, resume, tokens, up, down, better, choose,
      this.versions, this.stats);
    this.node = element("article", "assistant", element("h3", "hidden", "Answer"), this.name, this.body.node, this.notes,
      this.actions, this.below);
    this.update(false);
  }

  // Where it stands in the thread: its versions, and whether it is one of two side by side that the thread goes on with.
  place({ versions, pair, chosen, feedback, chat }, onSwitch) {
    this.versions.replaceChildren(...(chosen ? switcher(this.message, versions, onSwitch) : []));
    this.name.textContent = pair.length > 1 ? this.message.model : "";
    this.node.classList.toggle("aside", !chosen);
    this.buttons.choose.hidden = chosen;
    this.canRate = feedback && chat.kind === "chat";
    this.showRating();
  }

  showRating() {
    const { rating, better } = this.message;
    for (const name of ["up", "down"]) {
      this.buttons[name].hidden = !this.canRate;
      this.buttons[name].setAttribute("aria-pressed", String(rating === name));
    }
    this.buttons.better.hidden = !this.canRate;
    this.buttons.better.setAttribute("aria-pressed", String(Boolean(better)));
  }

  update(streaming) {
    const { message } = this;
    const began = performance.now();
    const shown = this.body.update(message.parts, streaming);
    this.node.classList.toggle("streaming", streaming);
    this.node.classList.toggle("empty", !shown);
    this.actions.hidden = streaming;
    this.buttons.resume.hidden = !shown || !(message.finish === "length" || message.error || message.stats === "stopped");
    this.buttons.again.hidden = message.parent === null; // a greeting: nothing was asked
    this.buttons.tokens.hidden = !shown;
    this.stats.textContent = message.streaming && !streaming ? "unfinished" : message.stats || ""; // or in another tab
    this.notes.replaceChildren();
    if (message.note) this.notes.append(element("p", "note", message.note));
    if (message.finish === "length") this.notes.append(element("p", "note", "The answer reached the longest length allowed."));
    if (message.error) {
      const again = button("Try again", "", () => this.on.regenerate(message));
      this.notes.append(element("p", "error", `${message.error} `, again));
    }
    this.cost = performance.now() - began; // milliseconds
  }
}

const SHOWN_CHARACTERS = 20000;

export class QuestionView {
  constructor(message, on) {
    Object.assign(this, { message, on });
    this.node = element("article", "user");
    this.versions = element("span", "versions");
    this.show();
  }

  place({ versions }, onSwitch) {
    this.versions.replaceChildren(...switcher(this.message, versions, onSwitch));
  }

  show() {
    const edit = button("Edit", "edit", () => this.edit());
    this.node.replaceChildren(element("h3", "hidden", "You"), this.bubble(),
      element("div", "actions", copyButton(() => this.message.text), edit, this.versions));
  }

  update() {
    if (!this.node.contains(document.activeElement)) this.show();
  }

  // A very long text takes seconds to lay out.
  bubble() {
    const { text } = this.message;
    const node = element("div", "bubble", text.slice(0, SHOWN_CHARACTERS));
    node.dir = "auto";
    if (text.length > SHOWN_CHARACTERS) {
      node.append(" … ", button(`Show all ${text.length} characters`, "quiet", () => {
        node.replaceChildren(text);
        node.tabIndex = -1;
        node.focus({ preventScroll: true });
      }));
    }
    return node;
  }

  edit() {
    const cancel = () => {
      this.show();
      this.node.querySelector(".edit").focus();
    };
    const save = (text) => {
      this.show();
      this.on.edit(this.message, text);
    };
    const box = editBox(this.message.text, { label: "Edit the message", done: "Send", save, cancel });
    this.node.replaceChildren(box);
    box.begin();
  }
}

// A box for a longer text, with a button that cancels and one that is done.
export function editBox(text, { label, done, save, cancel }) {
  const area = element("textarea");
  area.value = text;
  area.dir = directionOf(text);
  area.setAttribute("aria-label", label);
  area.rows = Math.min(12, text.split("\n").reduce((lines, line) => lines + Math.ceil((line.length + 1) / 60), 1));
  const keep = () => area.value.trim() && save(area.value);
  area.addEventListener("keydown", (event) => {
    if (isSend(event)) {
      event.preventDefault();
      keep();
    } else if (event.key === "Escape" && !event.isComposing) {
      event.stopPropagation();
      cancel();
    }
  });
  const buttons = element("div", "actions shown", button("Cancel", "", cancel), button(done, "primary", keep));
  const box = element("div", "editing", area, buttons);
  box.begin = () => {
    area.focus();
    box.scrollIntoView({ block: "nearest" });
    area.setSelectionRange(area.value.length, area.value.length);
  };
  return box;
}
