// Making DOM nodes from text.

export const $ = (id) => document.getElementById(id);

export function element(tag, className, ...children) {
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

// A line drawing of 24 x 24 from an SVG path: fonts without emoji are common.
export function icon(path) {
  const make = (tag, attributes) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  };
  const drawing = make("svg", { viewBox: "0 0 24 24", width: 15, height: 15, fill: "none", stroke: "currentColor",
    "stroke-width": 2, "stroke-linejoin": "round", "aria-hidden": true });
  drawing.append(make("path", { d: path }));
  return drawing;
}

// Enter sends, but never while an input method composes: Safari ends the composition first and then sends keyCode 229.
export function isSend(event) {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229;
}

// Where the focus goes when what had it is gone. On a touch screen the box would bring up the keyboard.
export function rest() {
  (window.matchMedia("(pointer: coarse)").matches ? $("log") : $("question")).focus({ preventScroll: true });
}

function copySelected(text) {
  const area = element("textarea", "hidden");
  area.value = text;
  (document.querySelector("dialog[open]") || document.body).append(area); // what is outside of a dialog cannot be selected
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  return copied;
}

export function copyButton(text) {
  const node = button("Copy", "copy", async () => {
    const written = navigator.clipboard?.writeText(text()); // there is none over plain http
    const copied = written ? await written.then(() => true, () => copySelected(text())) : copySelected(text());
    node.textContent = copied ? "Copied" : "Cannot copy";
    node.focus();
    setTimeout(() => { node.textContent = "Copy"; }, 1500);
  });
  return node;
}

export function download(name, text) {
  const link = element("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// The line below the header. `choice` is { label, action, seconds }: a button, which goes away after so many seconds.
let timer = 0;
export function notice(text, choice) {
  clearTimeout(timer);
  const line = $("notice");
  if (line.contains(document.activeElement)) rest();
  line.replaceChildren(text);
  line.hidden = !text;
  if (!choice) return;
  line.append(" ", button(choice.label, "", () => {
    notice("");
    rest();
    choice.action();
  }));
  if (choice.seconds) timer = setTimeout(() => notice(""), choice.seconds * 1000);
}

// Which way a text in a box runs, by its first letter. With dir=auto Chromium takes 14 s for 40,000 pasted lines.
export const directionOf = (text) => (/^\P{L}*[\u0590-\u08ff\ufb1d-\ufefc]/u.test(text) ? "rtl" : "ltr");
