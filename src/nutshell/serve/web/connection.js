// Is the server there, is its model loaded, what is it called; and saying so in words.

import { address, getJson } from "./sse.js";

const WORDS = {
  401: "The API key is missing or wrong.",
  413: "This is more text than the server takes at once.",
  429: "The server is busy with other answers.",
  502: "The server behind the proxy cannot be reached.",
  504: "The server took too long to answer.",
};

export function connect(values, panels) {
  const chip = document.getElementById("model");
  let context = 0;
  let timer = 0;
  let said = false; // the notice line is not ours alone

  function say(text, choice) {
    if (text || said) panels.notice(text, choice);
    said = Boolean(text);
  }

  // "ok", "loading", "failed", "shutting down"
  async function health() {
    const response = await fetch(address("health"), { cache: "no-store" });
    return response.status === 503 ? (await response.json()).status : "ok";
  }

  async function check() {
    clearTimeout(timer);
    try {
      const status = await health();
      if (status !== "ok") {
        say(status === "loading" ? "The model is loading …" : `The server is not ready: ${status}.`);
        timer = setTimeout(check, 1000);
        return;
      }
      const { data } = await getJson("v1/models", values.apiKey);
      chip.textContent = data[0].id;
      chip.title = data[0].max_model_len ? `A context of ${data[0].max_model_len} tokens` : "";
      context = data[0].max_model_len || 0;
      say("");
    } catch (error) {
      chip.textContent = "";
      if (error.status === 401) {
        say("This server asks for an API key.", { label: "Enter it", action: () => panels.openSettings("api-key") });
        return;
      }
      say("The server cannot be reached. Trying again …");
      timer = setTimeout(check, 3000);
    }
  }

  // After a 503: wait while the model loads; true when the question is worth sending again.
  async function becomesReady(signal) {
    let status = "loading";
    while (status === "loading" && !signal.aborted) {
      await new Promise((resolve) => { setTimeout(resolve, 700); });
      status = await health().catch(() => "gone");
    }
    return status === "ok" && !signal.aborted;
  }

  function explain(error) {
    if (error.code === "unreachable" || error.status === 503) check();
    return WORDS[error.status] || `${error.message[0].toUpperCase()}${error.message.slice(1).replace(/\.$/, "")}.`;
  }

  check();
  return { check, explain, becomesReady, limit: (tokens) => (context ? Math.min(tokens, context) : tokens) };
}
