// The token view: an answer as the model sees it, each token tinted by the probability it had, with the likeliest
// alternatives of the chosen one. The server scores the text as it stands (/v1/completions with echo), so it works for every
// answer, old or new, and for another model than the one that wrote it. Probabilities are those before temperature and top-k.

import { explain, post } from "./connection.js";
import { button, element } from "./dom.js";
import * as store from "./store.js";

const ALTERNATIVES = 8;

// The tokens of an answer: [{ text, probability, alternatives: [[text, probability]], given }]. What a tool put out is `given`:
// the model read it and did not choose it.
async function score(chat, message) {
  const model = message.model || undefined;
  let prompt;
  let before;
  if (chat.kind === "text") {
    const count = async (text) => (await post("tokenize", { model, prompt: text })).tokens;
    [before, prompt] = [(await count(store.textUpTo(chat, message.parent))).length, await count(store.textUpTo(chat, message.id))];
  } else {
    const ids = async (leaf) => (await post("tokenize", { model, messages: store.apiMessages(chat, leaf) })).tokens;
    [before, prompt] = [(await ids(message.parent)).length, await ids(message.id)];
  }
  const { choices } = await post("v1/completions", { model, prompt, echo: true, logprobs: ALTERNATIVES, max_tokens: 0 });
  const { tokens, token_logprobs: logprobs, top_logprobs: tops } = choices[0].logprobs;
  let given = false;
  const isGiven = (text) => {
    const inside = given || text === "<|output_start|>";
    given = inside && text !== "<|output_end|>";
    return inside;
  };
  return tokens.map((text, index) => ({
    text,
    given: isGiven(text),
    probability: logprobs[index] === null ? 1 : Math.exp(logprobs[index]),
    alternatives: Object.entries(tops[index] ?? {}).map(([name, logprob]) => [name, Math.exp(logprob)])
      .sort((one, other) => other[1] - one[1]),
  })).slice(before);
}

const visible = (text) => text.replace(/ /g, "·").replace(/\n/g, "↵").replace(/\t/g, "⇥") || "∅";
const percent = (probability) => (probability < 0.001 ? "< 0.1%" : `${(100 * probability).toFixed(1)}%`);
const level = (probability) => String([0.9, 0.5, 0.2, 0.05].filter((bound) => probability < bound).length); // 0 is sure

// Arrow keys move through the tokens, a click or the arrows show what else could have stood there.
function tokenList(tokens) {
  const list = element("div", "token-list");
  const detail = element("div", "alternatives");
  detail.setAttribute("aria-live", "polite");
  list.setAttribute("role", "listbox");
  list.setAttribute("aria-label", "Tokens");
  list.setAttribute("aria-orientation", "horizontal");
  list.tabIndex = 0;
  let chosen = -1;
  const nodes = tokens.map(({ text, probability, given }, index) => {
    const node = element("span", "token", visible(text));
    node.id = `token-${store.newId()}-${index}`;
    node.dataset.level = given ? "given" : level(probability);
    node.title = given ? "from the tool" : percent(probability);
    node.setAttribute("role", "option");
    node.setAttribute("aria-selected", "false");
    node.addEventListener("click", () => choose(index));
    return node;
  });
  function choose(index) {
    nodes[chosen]?.setAttribute("aria-selected", "false");
    chosen = Math.min(Math.max(index, 0), nodes.length - 1);
    nodes[chosen].setAttribute("aria-selected", "true");
    list.setAttribute("aria-activedescendant", nodes[chosen].id);
    detail.replaceChildren(alternatives(tokens[chosen]));
    for (const node of [detail, nodes[chosen]]) node.scrollIntoView({ block: "nearest" }); // where both don't fit, the token
  }
  list.addEventListener("keydown", (event) => {
    const to = { ArrowRight: chosen + 1, ArrowLeft: chosen - 1, Home: 0, End: nodes.length - 1 }[event.key];
    if (to === undefined || !nodes.length) return;
    event.preventDefault();
    choose(to);
  });
  nodes.forEach((node, index) => list.append(node, tokens[index].text.includes("\n") ? "\n" : ""));
  return [list, detail];
}

function alternatives({ text, alternatives: others }) {
  const row = ([name, probability]) => {
    const bar = element("meter");
    bar.value = probability;
    bar.setAttribute("aria-hidden", "true");
    const node = element("tr", name === text ? "taken" : "", element("th", "", element("code", "", visible(name))),
      element("td", "", percent(probability)), element("td", "", bar));
    node.firstChild.scope = "row";
    return node;
  };
  return element("table", "", element("caption", "hidden", "What the model held likely here"), element("tbody", "", ...others.map(row)));
}

export async function toggleTokens(chat, message, view) {
  const { buttons, below } = view;
  const shown = below.querySelector(".token-view");
  buttons.tokens.setAttribute("aria-expanded", String(!shown));
  if (shown) return shown.remove();
  const panel = element("section", "token-view", "…");
  panel.setAttribute("aria-label", "Token view");
  below.append(panel);
  try {
    const tokens = await score(chat, message);
    const own = tokens.filter(({ given }) => !given);
    const bits = own.reduce((sum, { probability }) => sum - Math.log2(Math.max(probability, 1e-30)), 0) / Math.max(1, own.length);
    const summary = `${own.length} tokens · ${bits.toFixed(2)} bits each · ${message.model}`;
    panel.replaceChildren(element("p", "summary", summary), ...tokenList(tokens));
    panel.scrollIntoView({ block: "nearest" });
  } catch (error) {
    panel.replaceChildren(element("p", "error", explain(error)), button("Try again", "quiet", () => {
      panel.remove();
      buttons.tokens.focus();
      toggleTokens(chat, message, view);
    }));
  }
  return undefined;
}
