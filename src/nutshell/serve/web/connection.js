// Is the server there, is its model loaded, what is it called; and saying so in words.

import { getJson } from "./sse.js";

export function connect(values, panels) {
  const chip = document.getElementById("model");
  let context = 0;
  let timer = 0;

  async function check() {
    clearTimeout(timer);
    try {
      const health = await fetch("/health", { cache: "no-store" });
      if (health.status === 503) {
        const { status } = await health.json();
        panels.notice(status === "loading" ? "The model is loading …" : `The server is not ready: ${status}.`);
        timer = setTimeout(check, 1000);
        return;
      }
      const { data } = await getJson("/v1/models", values.apiKey);
      chip.textContent = data[0].id;
      chip.title = data[0].max_model_len ? `A context of ${data[0].max_model_len} tokens` : "";
      context = data[0].max_model_len || 0;
      panels.notice("");
    } catch (error) {
      chip.textContent = "";
      if (error.status === 401) {
        panels.notice("This server asks for an API key.", {
          label: "Enter it", action: () => panels.openSettings("api-key"),
        });
        return;
      }
      panels.notice("The server cannot be reached. Trying again …");
      timer = setTimeout(check, 3000);
    }
  }

  function explain(error) {
    if (error.status === 429) return "The server is busy with other answers.";
    if (error.status === 401) return "The API key is missing or wrong.";
    if (error.status === 503) {
      check();
      return "The server is not ready.";
    }
    if (error.status === undefined) { // fetch itself failed
      check();
      return "The server cannot be reached.";
    }
    return `${error.message[0].toUpperCase()}${error.message.slice(1)}.`;
  }

  check();
  return { check, explain, limit: (tokens) => (context ? Math.min(tokens, context) : tokens) };
}
