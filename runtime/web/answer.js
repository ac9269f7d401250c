// One answer: asked for, read as it comes, timed; and what the model is sent for it.

import * as api from "./api.js";
import { newId } from "./dom.js";

/** @typedef {import("./store.js").Message} Message */
/** @typedef {import("./store.js").Conversation} Conversation */

const FIRST_LOOK_MS = 600; // before the queue is asked: most answers begin sooner
const LOOK_MS = 1500;
const SHORTEST_S = 0.02; // of an answer whose speed is told: pieces that come together say nothing of it

/**
 * What a message is to the model: its files go before its text.
 * @param {Message} message
 */
function content({ text, files }) {
  const parts = files.map((file) => `File ${file.name}:\n\`\`\`\n${file.text.replace(/\n$/, "")}\n\`\`\``);
  return [...parts, text].filter(Boolean).join("\n\n");
}

/**
 * @param {Conversation} conversation
 * @param {Message[]} path up to the message that is answered, or the answer that is gone on with
 */
export function messagesFor(conversation, path) {
  /** @type {object[]} */
  const messages = conversation.system.trim() ? [{ role: "system", content: conversation.system }] : [];
  for (const message of path) {
    if (message.role === "user") messages.push({ role: "user", content: content(message) });
    else messages.push({ role: "assistant", content: message.text, ...calls(message) });
  }
  const last = path.at(-1);
  // An answer at the end is one to go on with.
  if (last?.role === "assistant") Object.assign(/** @type {object} */ (messages.at(-1)), { prefix: true });
  return messages;
}

const RESERVE = 4; // tokens of a context that a prompt may not take

/**
 * Whether an answer leaves no room to go on with it.
 * @param {number | null} context
 * @param {number} contextLength 0: not known
 */
export function isFull(context, contextLength) {
  return Boolean(context && contextLength && context > contextLength - RESERVE);
}

/**
 * Why an answer was cut off, as far as that can be told: the daemon has one word for all of it.
 * @param {number | null} limit the conversation's own, where it was reached
 * @param {number | null} context
 * @param {number} contextLength 0: not known
 */
export function cutOff(limit, context, contextLength) {
  if (limit) return `this conversation's own limit of ${limit} ${limit === 1 ? "token" : "tokens"} was reached`;
  if (!context || !contextLength) return "a limit of its length, or the context's end, was reached, or it only repeated itself";
  if (context >= contextLength) return `the context of ${contextLength} tokens is full`;
  return "it only repeated itself, or reached a limit of the daemon's";
}

/** @param {Message} message */
function calls({ calls }) {
  if (!calls.length) return {};
  return { tool_calls: calls.map(({ id, name, arguments: text }) => ({ id, type: "function", function: { name, arguments: text } })) };
}

/**
 * @typedef {object} Reading
 * @property {string} text
 * @property {string} thought
 * @property {import("./store.js").Call[]} calls
 * @property {string} ended "" while it comes, else stop, length or tool_calls
 * @property {number | null} tokens
 * @property {number | null} context
 * @property {number | null} rate
 * @property {number | null} first
 */

/**
 * Reads one answer. `show` is called with everything so far, `wait` with a sentence while nothing comes.
 * @param {string} path
 * @param {object} body
 * @param {AbortSignal} signal
 * @param {(reading: Reading) => void} show
 * @param {(sentence: string) => void} wait
 */
export async function read(path, body, signal, show, wait) {
  /** @type {Reading} */
  const reading = { text: "", thought: "", calls: [], ended: "", tokens: null, context: null, rate: null, first: null };
  const id = `page-${newId()}`;
  const began = performance.now();
  let begun = 0;
  let latest = 0;
  let pieces = 0;
  void lookAtQueue(id, wait, () => begun > 0 || signal.aborted);
  try {
    for await (const event of api.stream(path, body, id, signal)) {
      const choice = event.choices?.[0];
      if (choice && add(reading, choice)) {
        latest = performance.now();
        begun ||= latest;
        pieces += 1;
        reading.first = (begun - began) / 1000;
        reading.tokens = pieces; // until the server has counted them
      }
      if (choice?.finish_reason) reading.ended = choice.finish_reason;
      if (event.usage) {
        reading.tokens = event.usage.completion_tokens;
        reading.context = event.usage.total_tokens;
      }
      const seconds = (latest - begun) / 1000;
      reading.rate = (reading.tokens ?? 0) > 1 && seconds >= SHORTEST_S ? ((reading.tokens ?? 0) - 1) / seconds : null;
      if (begun || event.usage) show(reading);
    }
  } finally {
    begun ||= 1; // nobody waits any more
  }
  return reading;
}

/**
 * Adds what a chunk brings; whether it brought anything.
 * @param {Reading} reading
 * @param {any} choice
 */
function add(reading, choice) {
  const delta = choice.delta ?? { content: choice.text };
  reading.text += delta.content ?? "";
  reading.thought += delta.reasoning_content ?? "";
  for (const call of delta.tool_calls ?? []) {
    const known = (reading.calls[call.index] ??= { id: "", name: "", arguments: "" });
    known.id ||= call.id ?? "";
    known.name += call.function?.name ?? "";
    known.arguments += call.function?.arguments ?? "";
  }
  return Boolean(delta.content || delta.reasoning_content || delta.tool_calls?.length);
}

/**
 * Says what an answer waits for.
 * @param {string} id
 * @param {(sentence: string) => void} wait
 * @param {() => boolean} over
 */
async function lookAtQueue(id, wait, over) {
  await sleep(FIRST_LOOK_MS, over);
  while (!over()) {
    try {
      const { place, state, reason } = await api.stats(id);
      if (over()) return;
      if (state === "loading") wait(reason ? `The model is being loaded: ${reason}.` : "The model is being loaded.");
      else if (place === 0) wait("The model reads the conversation.");
      else if (place) wait(place === 1 ? "Next in the queue." : `Number ${place} in the queue.`);
    } catch {
      // The answer itself says what is wrong.
    }
    await sleep(LOOK_MS, over);
  }
}

/**
 * @param {number} ms
 * @param {() => boolean} over
 */
async function sleep(ms, over) {
  const end = performance.now() + ms;
  while (performance.now() < end && !over()) await new Promise((resolve) => setTimeout(resolve, 50));
}
