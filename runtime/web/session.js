// One conversation at work: a tree of messages, the branch that is shown, and the answer that is under way.

import { Failure, countTokens } from "./api.js";
import { messagesFor, read } from "./answer.js";
import * as store from "./store.js";

/** @typedef {store.Message} Message */
/** @typedef {store.Conversation} Conversation */

const KEEP_MS = 1000; // between savings of an answer that comes
const TITLE = 60; // characters

export class Session {
  /**
   * @param {Conversation} conversation
   * @param {Message[]} messages
   * @param {(session: Session, message: Message | null) => void} changed null: more than one message's text
   */
  constructor(conversation, messages, changed) {
    this.conversation = conversation;
    /** @type {Map<string, Message>} */
    this.messages = new Map(messages.map((message) => [message.id, message]));
    this.changed = changed;
    /** @type {{controller: AbortController, message: Message, waiting: string} | null} */
    this.run = null;
    /** @type {Failure | null} of the answer that failed last */
    this.failure = null;
    this.unkept = ""; // why this browser did not keep it
    this.stale = false; // another tab has written to it
    /** @type {Set<string>} answers that the context has no room to go on with, as the daemon said */
    this.full = new Set();
    this.deleted = false; // what still comes of an answer must not bring it back
    this.leaf = this.remembered();
  }

  /**
   * Keeps the conversation. One that this browser does not keep goes on without.
   * @param {...Message} messages
   */
  async keep(...messages) {
    if (this.deleted) return;
    try {
      await store.keep(this.conversation, ...messages);
    } catch (error) {
      this.unkept = error instanceof Error ? error.message : String(error);
    }
  }

  /** The branch that this tab showed last, else the one that any did. */
  remembered() {
    const here = ofThisTab(this.conversation.id);
    const known = [here, this.conversation.leaf].find((id) => id && this.messages.has(id));
    return known ?? this.deepest(null);
  }

  /** @param {string | null} parent */
  children(parent) {
    return [...this.messages.values()].filter((message) => message.parent === parent).sort((a, b) => a.created - b.created);
  }

  /**
   * The end of the latest branch below a message.
   * @param {string | null} id
   * @returns {string | null}
   */
  deepest(id) {
    for (let next = this.children(id).at(-1); next; next = this.children(id).at(-1)) id = next.id;
    return id;
  }

  /** @returns {Message[]} from the first message to the leaf */
  path() {
    const found = [];
    for (let at = this.leaf ? this.messages.get(this.leaf) : undefined; at; at = at.parent ? this.messages.get(at.parent) : undefined) {
      found.push(at);
    }
    return found.reverse();
  }

  /** @param {Message} message */
  siblings(message) {
    return this.children(message.parent);
  }

  /** @param {Message} message */
  show(message) {
    this.setLeaf(this.deepest(message.id));
    void this.keep();
    this.changed(this, null);
  }

  /** @param {string | null} id */
  setLeaf(id) {
    this.leaf = this.conversation.leaf = id;
    if (id) ofThisTab(this.conversation.id, id);
  }

  /**
   * @param {string} text
   * @param {store.TextFile[]} files
   * @param {string | null} parent
   */
  async say(text, files, parent = this.leaf) {
    if (this.run) return;
    const message = store.newMessage({ conversation: this.conversation.id, parent, role: "user", text, files });
    if (!this.conversation.title) this.conversation.title = titleOf(text || files[0]?.name || "");
    this.messages.set(message.id, message);
    await this.answer(message);
  }

  /**
   * A new answer to a message of the user's.
   * @param {Message} question
   */
  async answer(question) {
    const message = store.newMessage({
      conversation: this.conversation.id, parent: question.id, role: "assistant", state: "partial", model: this.conversation.model,
    });
    this.messages.set(message.id, message);
    this.setLeaf(message.id);
    this.conversation.updated = Date.now();
    await this.fill(message, "", question);
  }

  /**
   * Another answer in this one's place, which stays beside it if there is anything of it.
   * @param {Message} message
   */
  async again(message) {
    const question = this.messages.get(message.parent ?? "");
    if (message.text || message.thought || message.calls.length) await (question && this.answer(question));
    else await this.fill(message, "");
  }

  /**
   * Goes on with an answer that was stopped or cut off.
   * @param {Message} message
   */
  async resume(message) {
    await this.fill(message, message.text);
  }

  /**
   * @param {Message} message
   * @param {string} before what there is of the answer already
   * @param {...Message} asked what has to be kept with it
   */
  async fill(message, before, ...asked) {
    if (this.run) return;
    const controller = new AbortController();
    this.run = { controller, message, waiting: "" };
    Object.assign(message, { state: "partial", error: "", limit: null });
    this.changed(this, null);
    const path = this.path();
    const had = before ? message.tokens ?? 0 : 0;
    const { model, limit } = this.conversation;
    const messages = messagesFor(this.conversation, before ? path : path.slice(0, -1));
    const body = { model: model || undefined, messages, ...(limit ? { max_tokens: limit } : {}) };
    let kept = performance.now();
    try {
      await this.keep(...asked, message);
      const reading = await read("/v1/chat/completions", body, controller.signal, (found) => {
        take(message, found, before, had);
        if (this.run) this.run.waiting = "";
        if (performance.now() - kept > KEEP_MS) {
          kept = performance.now();
          void this.keep(message);
        }
        this.changed(this, message);
      }, (sentence) => {
        if (this.run) this.run.waiting = sentence;
        this.changed(this, message);
      });
      take(message, reading, before, had);
      message.state = reading.ended === "length" ? "length" : "done";
      if (message.state === "length" && limit && (reading.tokens ?? 0) >= limit) message.limit = limit;
    } catch (error) {
      message.state = controller.signal.aborted ? "stopped" : "failed";
      if (!controller.signal.aborted) {
        message.error = error instanceof Failure ? error.message : `The page itself has failed: ${error}`;
        this.failure = error instanceof Failure ? error : null;
        if (before && this.failure?.code === "context_length_exceeded") this.full.add(message.id);
        if (!(error instanceof Failure)) console.error(error);
      }
    } finally {
      this.run = null;
      this.conversation.updated = Date.now();
      await this.keep(message);
      this.changed(this, null);
    }
    if (message.state === "stopped") void this.count(message);
  }

  /**
   * Has the tokens counted of a conversation whose answer was stopped before it told them.
   * @param {Message} message
   */
  async count(message) {
    const { run } = this;
    const { text } = message;
    const path = this.path();
    if (run || path.at(-1) !== message) return;
    const messages = messagesFor(this.conversation, text ? path : path.slice(0, -1));
    try {
      const tokens = await countTokens({ model: this.conversation.model || undefined, messages });
      if (this.run?.message === message || message.text !== text) return; // it goes on, and will tell them
      message.context = tokens;
    } catch {
      return; // not known, then
    }
    await this.keep(message);
    this.changed(this, null);
  }

  stop() {
    this.run?.controller.abort();
  }
}

/**
 * @param {Message} message
 * @param {import("./answer.js").Reading} reading
 * @param {string} before
 * @param {number} had tokens of it
 */
function take(message, reading, before, had) {
  const { text, thought, calls, tokens, context, rate, first } = reading;
  Object.assign(message, { text: before + text, calls, tokens: tokens === null ? had || null : had + tokens, context, rate, first });
  if (thought || !before) message.thought = thought;
}

/**
 * The message that this tab shows last of a conversation; with `leaf`, it is from now on.
 * @param {string} id
 * @param {string} [leaf]
 */
function ofThisTab(id, leaf) {
  try {
    if (leaf) sessionStorage.setItem(`rk-leaf-${id}`, leaf);
    return sessionStorage.getItem(`rk-leaf-${id}`);
  } catch {
    return null; // a browser that keeps nothing
  }
}

/** @param {string} text */
export function titleOf(text) {
  const line = text.trim().split("\n")[0]?.trim() ?? "";
  return line.length > TITLE ? `${line.slice(0, TITLE - 1).trimEnd()}…` : line;
}
