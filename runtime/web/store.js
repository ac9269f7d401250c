// Conversations in the browser's IndexedDB. Messages are records of their own, each with the one it follows: two tabs
// that write to one conversation make two branches, and neither takes anything from the other.

import { newId } from "./dom.js";

/** @typedef {{name: string, text: string}} TextFile */
/** @typedef {{id: string, name: string, arguments: string}} Call */
/**
 * @typedef {object} Message
 * @property {string} id
 * @property {string} conversation
 * @property {string | null} parent
 * @property {"user" | "assistant"} role
 * @property {string} text
 * @property {string} thought
 * @property {Call[]} calls
 * @property {TextFile[]} files
 * @property {"done" | "partial" | "stopped" | "length" | "failed"} state
 * @property {string} error
 * @property {string} model
 * @property {number | null} tokens of the answer
 * @property {number | null} context tokens of prompt and answer together
 * @property {number | null} limit of its length, where that cut it off
 * @property {number | null} rate tokens per second
 * @property {number | null} first seconds until the first token
 * @property {number} created
 */
/**
 * @typedef {object} Conversation
 * @property {string} id
 * @property {string} title
 * @property {boolean} named by its user, not after its first message
 * @property {"chat" | "text"} kind
 * @property {string} system
 * @property {string} model
 * @property {number | null} limit tokens of an answer
 * @property {string | null} leaf the message that was shown last
 * @property {string} text of a plain text
 * @property {number} created
 * @property {number} updated
 */

const FORMAT = "rk3588-chat";
const MOST_IMPORTED = 200_000_000;
const BATCH = 500;
let latest = 0; // when a message was made last: each comes after what it follows, also within a millisecond
/** @type {BroadcastChannel | null} */
const channel = "BroadcastChannel" in window ? new BroadcastChannel("rk-chat") : null;
/** @type {Promise<IDBDatabase> | null} */
let opened = null;

/** @returns {Promise<IDBDatabase>} */
function database() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open("rk-chat", 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("conversations", { keyPath: "id" }).createIndex("updated", "updated");
      request.result.createObjectStore("messages", { keyPath: "id" }).createIndex("conversation", "conversation");
    };
    request.onsuccess = () => {
      const lost = () => {
        opened = null; // the next one who asks opens it anew
        request.result.close();
      };
      // Deleted by another tab; or by the browser, with all that this site has kept.
      request.result.onversionchange = request.result.onclose = lost;
      resolve(request.result);
    };
    request.onerror = () => reject(request.error);
  });
  return opened;
}

/**
 * One transaction: what `work` asks for, once everything is kept.
 * @template T
 * @param {IDBTransactionMode} mode
 * @param {(conversations: IDBObjectStore, messages: IDBObjectStore) => IDBRequest<T> | void} work
 * @returns {Promise<T>}
 */
async function transact(mode, work) {
  const transaction = (await database()).transaction(["conversations", "messages"], mode);
  return new Promise((resolve, reject) => {
    const request = work(transaction.objectStore("conversations"), transaction.objectStore("messages"));
    transaction.oncomplete = () => resolve(/** @type {T} */ (request ? request.result : undefined));
    transaction.onabort = transaction.onerror = () => reject(transaction.error);
  });
}

/**
 * @param {Partial<Conversation>} more
 * @returns {Conversation}
 */
export function newConversation(more = {}) {
  const now = Date.now();
  return {
    id: newId(), title: "", named: false, kind: "chat", system: "", model: "", limit: null, leaf: null, text: "",
    created: now, updated: now, ...more,
  };
}

/**
 * @param {Pick<Message, "conversation" | "parent" | "role"> & Partial<Message>} more
 * @returns {Message}
 */
export function newMessage(more) {
  return {
    id: newId(), text: "", thought: "", calls: [], files: [], state: "done", error: "", model: "", tokens: null,
    context: null, limit: null, rate: null, first: null, created: (latest = Math.max(Date.now(), latest + 1)), ...more,
  };
}

/**
 * Keeps a conversation, and messages of it.
 * @param {Conversation} conversation
 * @param {...Message} messages
 */
export async function keep(conversation, ...messages) {
  await transact("readwrite", (conversations, store) => {
    conversations.put(conversation);
    for (const message of messages) store.put(message);
  });
  channel?.postMessage({ changed: conversation.id });
}

/**
 * @param {string} id
 * @returns {Promise<Conversation | undefined>}
 */
export function find(id) {
  return transact("readonly", (conversations) => conversations.get(id));
}

/** @returns {Promise<Conversation[]>} the latest first */
export async function all() {
  /** @type {Conversation[]} */
  const found = await transact("readonly", (conversations) => conversations.index("updated").getAll());
  return found.reverse();
}

/**
 * @param {string} id
 * @returns {Promise<Message[]>}
 */
export async function messagesOf(id) {
  /** @type {Message[]} */
  const found = await transact("readonly", (_, messages) => messages.index("conversation").getAll(id));
  return found.sort((one, other) => one.created - other.created);
}

/** @param {string} id */
export async function remove(id) {
  await transact("readwrite", (conversations, messages) => {
    conversations.delete(id);
    const cursors = messages.index("conversation").openKeyCursor(id);
    cursors.onsuccess = () => {
      const cursor = cursors.result;
      if (!cursor) return;
      messages.delete(cursor.primaryKey);
      cursor.continue();
    };
  });
  channel?.postMessage({ changed: id });
}

/**
 * Ids of the conversations in whose name, text or messages `words` stand. `signal` gives it up.
 * @param {string} words
 * @param {AbortSignal} signal
 * @returns {Promise<Set<string>>}
 */
export async function search(words, signal) {
  const wanted = words.toLowerCase();
  /** @type {Set<string>} */
  const found = new Set();
  for (const { id, title, text } of await all()) {
    if (`${title}\n${text}`.toLowerCase().includes(wanted)) found.add(id);
  }
  /** @type {IDBKeyRange | null} */
  let after = null;
  while (!signal.aborted) {
    /** @type {Message[]} */
    const batch = await transact("readonly", (_, messages) => messages.getAll(after, BATCH));
    for (const { conversation, text } of batch) {
      if (!found.has(conversation) && text.toLowerCase().includes(wanted)) found.add(conversation);
    }
    const last = batch.at(-1);
    if (batch.length < BATCH || !last) break;
    after = IDBKeyRange.lowerBound(last.id, true);
  }
  return found;
}

/**
 * Calls `listener` with a conversation's id when another tab has changed it.
 * @param {(id: string) => void} listener
 */
export function onChange(listener) {
  channel?.addEventListener("message", (event) => listener(String(event.data?.changed)));
}

/**
 * JSON of conversations with their messages.
 * @param {string[] | null} ids null: all
 */
export async function exported(ids) {
  const chosen = (await all()).filter(({ id }) => !ids || ids.includes(id));
  const conversations = [];
  for (const conversation of chosen) {
    conversations.push({ ...conversation, messages: await messagesOf(conversation.id) });
  }
  return JSON.stringify({ format: FORMAT, version: 1, conversations }, null, 1);
}

/**
 * Adds what `exported` wrote, under new ids: nothing that is there is overwritten. Returns the conversations.
 * @param {Blob} file
 * @returns {Promise<Conversation[]>}
 */
export async function imported(file) {
  if (file.size > MOST_IMPORTED) throw new Error("this file is too large to be imported");
  /** @type {any} */
  let read;
  try {
    read = JSON.parse(await file.text());
  } catch {
    throw new Error("this file is not JSON: choose one that was exported here");
  }
  if (read?.format !== FORMAT || read.version !== 1 || !Array.isArray(read.conversations)) {
    throw new Error("this file holds no conversations of this page: choose one that was exported here");
  }
  /** @type {[Conversation, Message[]][]} */
  const found = read.conversations.map(checked);
  await transact("readwrite", (conversations, messages) => {
    for (const [conversation, itsMessages] of found) {
      conversations.put(conversation);
      for (const message of itsMessages) messages.put(message);
    }
  });
  channel?.postMessage({ changed: "" });
  return found.map(([conversation]) => conversation);
}

/**
 * What a file holds, as what it has to be: anybody can write one.
 * @param {any} given
 * @returns {[Conversation, Message[]]}
 */
function checked(given) {
  const conversation = newConversation({
    title: text(given?.title).slice(0, 200), named: given?.named === true, kind: given?.kind === "text" ? "text" : "chat",
    system: text(given?.system), model: text(given?.model), limit: Math.trunc(count(given?.limit) ?? 0) || null, text: text(given?.text),
    created: count(given?.created) ?? Date.now(), updated: count(given?.updated) ?? Date.now(),
  });
  const messages = (Array.isArray(given?.messages) ? given.messages : []).map((/** @type {any} */ each) =>
    newMessage({
      conversation: conversation.id, parent: null, role: each?.role === "assistant" ? "assistant" : "user",
      text: text(each?.text), thought: text(each?.thought), error: text(each?.error), model: text(each?.model),
      calls: list(each?.calls, (call) => ({ id: text(call?.id), name: text(call?.name), arguments: text(call?.arguments) })),
      files: list(each?.files, (file) => ({ name: text(file?.name), text: text(file?.text) })),
      state: ["stopped", "length", "failed"].includes(each?.state) ? each.state : "done",
      tokens: count(each?.tokens), context: count(each?.context), limit: count(each?.limit), rate: count(each?.rate), first: count(each?.first),
      created: count(each?.created) ?? Date.now(),
    }));
  /** @type {Map<string, Message>} */
  const byOldId = new Map();
  // A message follows one that stood before it in the file, so there are no rings.
  messages.forEach((/** @type {Message} */ message, /** @type {number} */ at) => {
    const old = given.messages[at];
    message.parent = byOldId.get(text(old?.parent))?.id ?? null;
    byOldId.set(text(old?.id), message);
  });
  conversation.leaf = byOldId.get(text(given?.leaf))?.id ?? null;
  return [conversation, messages];
}

/** @param {any} value */
function text(value) {
  return typeof value === "string" ? value : "";
}

/** @param {any} value */
function count(value) {
  return typeof value === "number" && Number.isFinite(value) && value >= 0 ? value : null;
}

/**
 * @template T
 * @param {any} value
 * @param {(each: any) => T} read
 * @returns {T[]}
 */
function list(value, read) {
  return Array.isArray(value) ? value.map(read) : [];
}
