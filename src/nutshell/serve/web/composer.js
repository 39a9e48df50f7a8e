// The box below: how it fits what is written there, and what one may ask first.

import { directionOf } from "./dom.js";

export const EXAMPLES = ["What is the capital of France?", "How many times does the letter e appear in cheese?",
  "What is 47 plus 85?", "Tell me a short story."];

export function fitBox(area) {
  area.dir = directionOf(area.value);
  area.style.height = "auto";
  area.style.height = `${Math.min(area.scrollHeight, 220)}px`;
}
