// What the page asks of the daemon that it came from.

const KEY = "rk-key";
const UNREACHABLE =
  "The daemon cannot be reached. Is it still running, and is this device still in its network? Then try again.";

/** Something that went wrong, as a sentence for whoever reads the page. */
export class Failure extends Error {
  /**
   * @param {string} message
   * @param {number} [status]
   * @param {string} [code]
   * @param {number} [retry] seconds after which it may be tried again
   */
  constructor(message, status = 0, code = "", retry = 0) {
    super(message);
    this.status = status;
    this.code = code;
    this.retry = retry;
  }
}

/** @returns {string} the key that was given once, "" for none */
export function key() {
  try {
    return localStorage.getItem(KEY) ?? "";
  } catch {
    return givenKey;
  }
}

let givenKey = "";

/** @param {string} value */
export function keepKey(value) {
  givenKey = value;
  try {
    if (value) localStorage.setItem(KEY, value);
    else localStorage.removeItem(KEY);
  } catch {
    // A browser that keeps nothing asks again after a reload.
  }
}

/**
 * @param {string} path
 * @param {RequestInit} [options]
 * @returns {Promise<Response>}
 */
async function ask(path, options = {}) {
  const headers = new Headers(options.headers);
  if (key()) headers.set("Authorization", `Bearer ${key()}`);
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Failure(UNREACHABLE);
  }
  if (!response.ok && path !== "/health") throw await refused(response);
  return response;
}

/** @param {Response} response */
async function refused(response) {
  /** @type {any} */
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // Not the daemon's own answer: a proxy's.
  }
  const told = typeof error.message === "string" ? sentence(error.message) : `The server answered ${response.status}.`;
  const retry = Number(response.headers.get("retry-after")) || 0;
  return new Failure(told, response.status, String(error.code ?? ""), retry);
}

/** @param {string} text */
function sentence(text) {
  const begun = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?…]$/.test(begun) ? begun : `${begun}.`;
}

/**
 * @typedef {{id: string, max_model_len?: number, runtime?: string}} Model
 * @returns {Promise<Model[]>} without the names for work in the background
 */
export async function models() {
  const { data } = await (await ask("/v1/models")).json();
  return data.filter((/** @type {Model} */ model) => !model.id.endsWith(":background"));
}

/** @returns {Promise<{state: string, reason?: string, context?: number}>} */
export async function health() {
  return (await ask("/health")).json();
}

/**
 * How many tokens a conversation has.
 * @param {object} body
 * @returns {Promise<number>}
 */
export async function countTokens(body) {
  const headers = { "Content-Type": "application/json" };
  return (await (await ask("/tokenize", { method: "POST", headers, body: JSON.stringify(body) })).json()).count;
}

/**
 * @param {string} [request] whose place in the queue is wanted
 * @returns {Promise<any>}
 */
export async function stats(request) {
  return (await ask(request ? `/stats?request=${encodeURIComponent(request)}` : "/stats")).json();
}

/**
 * Streams an answer: each event of it, as an object.
 * @param {string} path
 * @param {object} body
 * @param {string} request its id
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<any, void, void>}
 */
export async function* stream(path, body, request, signal) {
  const response = await ask(path, {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-Request-Id": request },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  if (!response.body) return;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    while (true) {
      const { value, done } = await reader.read();
      if (done) break;
      const lines = (text + value).split("\n");
      text = lines.pop() ?? "";
      for (const line of lines) {
        if (!line.startsWith("data: ")) continue;
        if (line === "data: [DONE]") return;
        const event = JSON.parse(line.slice(6));
        if (event.error) throw new Failure(sentence(String(event.error.message)), 200, String(event.error.code ?? ""));
        yield event;
      }
    }
  } catch (error) {
    if (signal.aborted || error instanceof Failure) throw error;
    throw new Failure("The connection ended in the middle of the answer.");
  } finally {
    reader.cancel().catch(() => {});
  }
  throw new Failure("The answer ended before it was whole.");
}
