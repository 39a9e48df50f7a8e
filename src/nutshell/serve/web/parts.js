// The parts of an answer on screen: text as Markdown, and tool calls with what came back.

import { element } from "./dom.js";
import { MarkdownView } from "./markdown.js";

// What the model ran and what came back: a sum on one line, a program as a block. Its language is Python either way.
class ToolView {
  constructor() {
    this.code = element("code");
    this.result = element("code", "result");
    this.node = element("div", "tool", element("span", "tool-name", "Python"), this.code);
    this.node.setAttribute("role", "group");
    this.node.setAttribute("aria-label", "Tool call");
  }

  update({ tool, output }) {
    this.code.textContent = tool;
    this.result.textContent = output;
    this.node.classList.toggle("program", tool.includes("\n") || Boolean(output?.includes("\n")));
    this.node.classList.toggle("waiting", output === null);
    if (output !== null) this.node.append(element("span", "equals", "="), this.result);
  }
}

class PlainView {
  constructor() {
    this.node = element("span", "plain");
  }

  update({ text }) {
    this.node.textContent = text;
  }
}

// Parts -> what is shown: a text each, and a tool call together with its output.
function blocksOf(parts) {
  const result = [];
  for (const { type, text } of parts) {
    const last = result.at(-1);
    if (type === "python_output" && last?.tool !== undefined && last.output === null) last.output = text;
    else if (type === "text") result.push({ text });
    else result.push(type === "python" ? { tool: text, output: null } : { tool: "", output: text });
  }
  return result;
}

// Shows parts that may grow; only the blocks that changed are drawn again. `plain` text is shown without Markdown.
export class PartsView {
  constructor(plain) {
    Object.assign(this, { plain, blocks: [], drawn: [] });
    this.node = element("div", "body");
    this.node.dir = "auto";
  }

  // How many blocks are shown.
  update(parts, streaming) {
    const shown = blocksOf(parts);
    shown.forEach((block, index) => {
      const key = block.tool === undefined ? block.text : JSON.stringify(block);
      if (this.drawn[index] === key) return;
      const Kind = block.tool !== undefined ? ToolView : this.plain ? PlainView : MarkdownView;
      if (!(this.blocks[index] instanceof Kind)) {
        this.blocks[index]?.node.remove();
        this.blocks[index] = new Kind();
        this.node.append(this.blocks[index].node);
        this.blocks[index].node.classList.add("block");
      }
      this.blocks[index].update(block, streaming);
      this.drawn[index] = key;
    });
    if (!streaming) this.blocks.at(-1)?.finish?.();
    return shown.length;
  }
}
