// How a conversation is answered, and the settings of the whole page. Both are small and live in localStorage; each
// conversation carries its own copy of the options.

const KEY = "nutshell.settings";

export const OPTIONS = {
  system: "", temperature: 0.4, topK: 0, topP: 1, minP: 0, maxTokens: 256, seed: "", stop: "", // a stop string a line
};
const DEFAULTS = { ...OPTIONS, theme: "auto", apiKey: "" };

export const settings = { ...DEFAULTS };

// Those of `raw` that are of the right type.
export function checked(raw, wanted = OPTIONS) {
  const good = Object.keys(wanted).filter((key) => raw && typeof raw[key] === typeof wanted[key]);
  return { ...wanted, ...Object.fromEntries(good.map((key) => [key, raw[key]])) };
}

// What a new conversation begins with.
export const defaults = () => checked(settings);

export function readSettings() {
  try {
    Object.assign(settings, checked(JSON.parse(localStorage.getItem(KEY)), DEFAULTS));
  } catch { /* no leave to store, or not what we wrote */ }
}

export function saveSettings(changes) {
  Object.assign(settings, changes);
  try {
    localStorage.setItem(KEY, JSON.stringify(settings));
  } catch { /* they hold as long as the page */ }
}

// Another tab has other settings now.
export function watchSettings(changed) {
  window.addEventListener("storage", (event) => {
    if (event.key !== KEY) return;
    readSettings();
    changed();
  });
}
readSettings();

// The fields of a request. Without a seed of the reader's own, answers differ each time.
export function sampling({ temperature, topK, topP, minP, maxTokens, seed, stop }) {
  const stops = stop.split("\n").filter(Boolean);
  return {
    temperature,
    max_tokens: maxTokens,
    ...(topK > 0 && { top_k: topK }),
    ...(topP < 1 && { top_p: topP }),
    ...(minP > 0 && { min_p: minP }),
    ...(seed !== "" && { seed: Number(seed) }),
    ...(stops.length && { stop: stops }),
  };
}
