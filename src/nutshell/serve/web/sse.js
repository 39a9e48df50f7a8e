// Server-sent events out of a fetch body. The network may cut bytes anywhere: inside a line, a line end, a character.

// Returns a parser: feed it strings as they come, it calls onData with the data of each complete event.
export function eventParser(onData) {
  let rest = "";
  let data = [];
  let afterReturn = false;
  return (text) => {
    if (afterReturn && text.startsWith("\n")) text = text.slice(1); // the second half of a CRLF that was cut
    if (text) afterReturn = false;
    rest += text;
    let from = 0;
    for (;;) {
      const match = /\r\n|\n|\r/g;
      match.lastIndex = from;
      const end = match.exec(rest);
      if (!end) break;
      const line = rest.slice(from, end.index);
      from = end.index + end[0].length;
      if (end[0] === "\r" && from === rest.length) afterReturn = true;
      if (line === "") {
        if (data.length) onData(data.join("\n"));
        data = [];
      } else if (line.startsWith("data:")) {
        data.push(line.slice(line[5] === " " ? 6 : 5));
      }
    }
    rest = rest.slice(from);
  };
}

export class AnswerError extends Error {
  constructor(message, status, code, retryAfter = 0) {
    super(message);
    Object.assign(this, { status, code, retryAfter }); // seconds
  }
}

// The server's own words about an answer other than 200, or the status when a proxy made it.
async function failure(response) {
  let error = {};
  try {
    error = (await response.json()).error || {};
  } catch { /* not ours */ }
  return new AnswerError(error.message || `the server answered ${response.status}`, response.status, error.code,
    Number(response.headers.get("Retry-After")));
}

function headers(apiKey) {
  const all = { "Content-Type": "application/json" };
  if (apiKey) all.Authorization = `Bearer ${apiKey}`;
  return all;
}

// A body as JSON. Half of a character (a pasted or erased emoji) is none in UTF-8, and would make each later question fail.
export function encode(body) {
  return JSON.stringify(body, (key, value) => (typeof value === "string" ? value.replace(/\p{Surrogate}/gu, "\ufffd") : value));
}

// Below whatever path the page itself has: it may stand behind a proxy at /prefix/.
export function address(path) {
  return new URL(`../${path}`, import.meta.url);
}

export async function getJson(path, apiKey, options = {}) {
  const response = await fetch(address(path), { headers: headers(apiKey), cache: "no-store", ...options });
  if (!response.ok) throw await failure(response);
  return response.json();
}

const SILENCE_SECONDS = 90; // the server sends a comment every few seconds while it has nothing to say

// POST to `path` and call onChunk with each chunk. Throws AnswerError, or AbortError when the controller stops it.
export async function streamAnswer(path, body, { apiKey, controller, onChunk }) {
  let timer = 0;
  let begun = false;
  const listen = () => {
    clearTimeout(timer);
    timer = setTimeout(() => controller.abort(
      new AnswerError(`the server has been silent for ${SILENCE_SECONDS} seconds`, 0, "timeout")), SILENCE_SECONDS * 1000);
  };
  try {
    listen();
    const response = await fetch(address(path), {
      method: "POST",
      headers: headers(apiKey),
      body: encode({ ...body, stream: true, stream_options: { include_usage: true } }),
      signal: controller.signal,
    });
    begun = true;
    if (!response.ok) throw await failure(response);
    await readChunks(response.body.getReader(), onChunk, listen);
  } catch (error) {
    if (error instanceof SyntaxError) throw new AnswerError("the server sent something that is not an answer", 0, "garbled");
    if (!(error instanceof TypeError)) throw error;
    if (begun) throw new AnswerError("the connection broke before the answer was finished", 0, "cut");
    throw new AnswerError("the server cannot be reached", 0, "unreachable");
  } finally {
    clearTimeout(timer);
  }
}

async function readChunks(reader, onChunk, listen) {
  let done = false;
  const feed = eventParser((data) => {
    if (data === "[DONE]") {
      done = true;
      return;
    }
    const chunk = JSON.parse(data);
    if (chunk.error) throw new AnswerError(chunk.error.message, 500, chunk.error.code);
    onChunk(chunk);
  });
  const decoder = new TextDecoder();
  for (;;) {
    const { done: over, value } = await reader.read();
    listen();
    feed(decoder.decode(value || new Uint8Array(), { stream: !over }));
    if (over) break;
  }
  if (!done) throw new AnswerError("the connection broke before the answer was finished", 0, "cut");
}
