// The page: which conversation is shown, what is typed, and what the daemon says of itself.

import * as api from "./api.js";
import { Failure } from "./api.js";
import { askKey, askSettings } from "./dialogs.js";
import { byId, drawIcons, make, say } from "./dom.js";
import { Files } from "./files.js";
import { MessageList } from "./messages.js";
import { Panel } from "./panel.js";
import { PlainText } from "./plaintext.js";
import { Session } from "./session.js";
import { Sidebar } from "./sidebar.js";
import * as store from "./store.js";

/** @typedef {store.Message} Message */

const READY_MS = 2000; // between looks at a model that is being loaded
const TRIED = ["What is an NPU, in two sentences?", "Write a haiku about a small computer.", "Explain this to a child: why is the sky blue?"];

const composer = byId("composer", HTMLFormElement);
const input = byId("say", HTMLTextAreaElement);
const sendButton = byId("send", HTMLButtonElement);
const stopButton = byId("stop", HTMLButtonElement);
const notice = byId("notice", HTMLParagraphElement);
const title = byId("title", HTMLHeadingElement);
const modelMenu = byId("model", HTMLSelectElement);
const chat = byId("chat", HTMLElement);

/** @type {api.Model[]} */
let models = [];
let contextLength = 0;
/** @type {Session} */
let session = new Session(store.newConversation(), [], changed);
/** @type {Map<string, Session>} those with an answer under way, whether they are shown or not */
const working = new Map();

drawIcons();
const files = new Files((sentence) => tell(sentence));
const list = new MessageList(byId("messages", HTMLDivElement), chat, {
  retry: (message) => void work(session, () => session.again(message)),
  resume: (message) => void work(session, () => session.resume(message)),
  edit: (message, text) => void work(session, () => session.say(text, message.files, message.parent)),
  show: (message) => session.show(message),
});
const sidebar = new Sidebar({
  open: (id) => {
    if (id === session.conversation.id) void open(id);
    else if (id) location.hash = id;
    showMenu(false);
  },
  removing: (id) => {
    plain.forget(id);
    for (const it of held(id)) {
      it.deleted = true;
      it.stop();
    }
  },
  renamed: (id, title) => {
    for (const it of held(id)) Object.assign(it.conversation, { title, named: true });
  },
  removed: (id) => {
    if (id === session.conversation.id) begin(session.conversation.kind);
  },
});
const plain = new PlainText({ kept: () => void afterKept(), failed: (failure) => void failed(failure, () => plain.goOn()) });
new Panel();

/**
 * What this tab has in memory of a conversation.
 * @param {string} id
 */
function held(id) {
  return [session, ...working.values()].filter((it) => it.conversation.id === id);
}

/**
 * Something of a conversation has changed: all of it, or one message's text.
 * @param {Session} changedSession
 * @param {Message | null} message
 */
function changed(changedSession, message) {
  if (changedSession !== session) return;
  if (message) list.update(message);
  else draw();
}

function draw() {
  const { conversation, run } = session;
  const isText = conversation.kind === "text";
  title.textContent = conversation.title || (isText ? "New plain text" : "New chat");
  document.title = `${title.textContent} · rkchatd`;
  chat.hidden = composer.hidden = isText;
  byId("text", HTMLElement).hidden = !isText;
  list.draw(isText ? null : session);
  byId("welcome", HTMLDivElement).hidden = isText || session.messages.size > 0;
  stopButton.hidden = !run;
  sendButton.hidden = Boolean(run);
  const used = session.path().findLast((message) => message.context)?.context;
  const place = byId("context", HTMLSpanElement);
  place.textContent = used && contextLength ? `${used} of ${contextLength} tokens of context used` : "";
  place.classList.toggle("nearly", Boolean(used && contextLength && used > 0.9 * contextLength));
}

/**
 * Has a session answer, and looks after what goes wrong.
 * @param {Session} it
 * @param {() => Promise<void>} what
 */
async function work(it, what) {
  if (it.run) return;
  list.follows = true;
  const id = it.conversation.id;
  working.set(id, it);
  if (location.hash.slice(1) !== id && it === session) history.replaceState(null, "", `#${id}`);
  it.failure = null;
  say("The model answers.");
  const done = what();
  void afterKept();
  await done;
  if (it.unkept) tell(`This browser does not keep the conversation (${it.unkept}): it is gone after a reload.`);
  working.delete(id);
  const last = it.path().at(-1);
  if (it === session) say(last?.state === "done" ? `Answer: ${last.text.slice(0, 2000)}` : last?.error || "Stopped.");
  await afterKept();
  if (it.stale) await fromOtherTab(id);
  if (it.failure && last) await failed(it.failure, () => work(it, () => it.again(last)));
}

async function afterKept() {
  sidebar.current = session.conversation.id;
  title.textContent = session.conversation.title || title.textContent;
  await sidebar.draw();
}

/**
 * A wrong or missing key is asked for; then `again`.
 * @param {Failure} failure
 * @param {() => void | Promise<void>} again
 */
async function failed(failure, again) {
  if (failure.status !== 401) return;
  const given = await askKey(api.key());
  if (given === null) return;
  api.keepKey(given);
  await look();
  await again();
}

/** @param {string} sentence "" takes it away */
function tell(sentence) {
  notice.textContent = sentence;
  notice.hidden = !sentence;
}

/** @param {"chat" | "text"} kind */
function begin(kind) {
  plain.close();
  const { system, model } = session.conversation;
  session = new Session(store.newConversation({ kind, model, system: kind === "chat" ? system : "" }), [], changed);
  if (location.hash) history.pushState(null, "", location.pathname);
  shown();
}

/** @param {string} id */
async function open(id) {
  plain.close();
  const live = working.get(id);
  const conversation = live ? live.conversation : id ? await store.find(id) : undefined;
  if (!conversation) {
    if (id) tell("This conversation is not in this browser any more.");
    begin("chat");
    return;
  }
  session = live ?? new Session(conversation, await store.messagesOf(id), changed);
  shown();
}

function shown() {
  list.follows = true;
  const { conversation } = session;
  if (conversation.kind === "text") plain.open(conversation);
  drawModels();
  draw();
  sidebar.mark(conversation.id);
  if (matchMedia("(pointer: fine)").matches) (conversation.kind === "text" ? plain.area : input).focus();
}

function drawModels() {
  const { conversation } = session;
  const known = models.some(({ id }) => id === conversation.model);
  if (!known && models[0]) conversation.model = models[0].id;
  const base = models[0]?.id ?? "";
  modelMenu.replaceChildren(...models.map(({ id }) => make("option", { value: id, selected: id === conversation.model }, id.startsWith(`${base}:`) ? `${base} with ${id.slice(base.length + 1)}` : id)));
  modelMenu.disabled = models.length < 2;
}

/** What the daemon serves, and whether it is ready; asks for a key where one is wanted. */
async function look() {
  try {
    models = await api.models();
    byId("simulated", HTMLSpanElement).hidden = models[0]?.runtime !== "sim";
    tell("");
    drawModels();
    drawWelcome();
    hasContext(models[0]?.max_model_len ?? 0);
    await untilReady();
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    if (error.status === 401) await failed(error, () => {});
    else {
      tell(error.message);
      setTimeout(look, 2 * READY_MS);
    }
  } finally {
    byId("forget-key", HTMLButtonElement).hidden = !api.key();
  }
}

async function untilReady() {
  for (;;) {
    const { state, reason, context } = await api.health();
    if (state === "ready") {
      if (context && context !== contextLength) hasContext(context);
      tell("");
      return;
    }
    if (state !== "loading") tell(`The daemon cannot answer: ${reason || state}.`);
    else tell(`The model is being loaded${reason ? ` (${reason})` : ""}. What you send waits for it.`);
    await new Promise((resolve) => setTimeout(resolve, READY_MS));
  }
}

/** @param {number} tokens of context, 0 where it is not known */
function hasContext(tokens) {
  contextLength = list.contextLength = plain.contextLength = tokens;
  draw();
}

function drawWelcome() {
  const [model] = models;
  const where = model?.runtime === "sim" ? "in the simulated runtime: as the NPU would answer, at this computer's speed" : "on the NPU of this board";
  byId("welcome", HTMLDivElement).replaceChildren(
    make("p", { class: "greeting" }, "What shall we talk about?"),
    make("p", { class: "quiet" }, `${model ? `${model.id}, ${where}. ` : ""}Conversations stay in this browser.`),
    make("div", { class: "tries" }, ...TRIED.map((text) => make("button", { type: "button", onclick: () => void send(text) }, text))));
}

/** @param {string} text */
async function send(text) {
  const chosen = files.takeAll();
  if ((!text.trim() && !chosen.length) || session.run) return;
  input.value = "";
  grow();
  const it = session;
  await work(it, () => it.say(text.trim(), chosen));
}

function grow() {
  input.style.height = "auto";
  input.style.height = `${Math.min(input.scrollHeight, 240)}px`;
}

/** @param {boolean} open */
function showMenu(open) {
  document.body.classList.toggle("menu", open);
  byId("veil", HTMLDivElement).hidden = !open;
  byId("menu", HTMLButtonElement).setAttribute("aria-expanded", String(open));
}

function listen() {
  composer.addEventListener("submit", (event) => {
    event.preventDefault();
    void send(input.value);
  });
  input.addEventListener("input", grow);
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      void send(input.value);
    } else if (event.key === "ArrowUp" && !input.value) {
      const edits = document.querySelectorAll('article.user button[aria-label="Edit message"]');
      const last = edits[edits.length - 1];
      if (last instanceof HTMLButtonElement) {
        event.preventDefault();
        last.click();
      }
    }
  });
  stopButton.addEventListener("click", () => {
    session.stop();
    input.focus();
  });
  document.addEventListener("keydown", (event) => {
    const control = event.ctrlKey || event.metaKey;
    if (event.key === "Escape" && document.body.classList.contains("menu")) showMenu(false);
    else if (event.key === "Escape" && session.run && !document.querySelector("dialog[open]")) session.stop();
    else if (control && event.shiftKey && event.key.toLowerCase() === "o") begin("chat");
    else if (control && !event.shiftKey && event.key.toLowerCase() === "k") {
      if (matchMedia("(max-width: 50rem)").matches) showMenu(true);
      sidebar.input.focus();
    } else return;
    event.preventDefault();
  });
  listenToButtons();
  addEventListener("hashchange", () => void open(location.hash.slice(1)));
  addEventListener("popstate", () => {
    if (!location.hash && session.messages.size) begin("chat");
  });
  store.onChange((id) => void fromOtherTab(id));
  theme();
}

function listenToButtons() {
  for (const [id, kind] of /** @type {["new-chat" | "new-text", "chat" | "text"][]} */ ([["new-chat", "chat"], ["new-text", "text"]])) {
    byId(id, HTMLButtonElement).addEventListener("click", () => {
      begin(kind);
      showMenu(false);
    });
  }
  byId("menu", HTMLButtonElement).addEventListener("click", () => showMenu(true));
  byId("veil", HTMLDivElement).addEventListener("click", () => showMenu(false));
  byId("settings", HTMLButtonElement).addEventListener("click", async () => {
    const { conversation } = session;
    if (!(await askSettings(conversation))) return;
    if (session.messages.size || conversation.text) await session.keep();
    draw();
    await afterKept();
  });
  modelMenu.addEventListener("change", async () => {
    session.conversation.model = modelMenu.value;
    if (session.messages.size) await session.keep();
  });
  byId("forget-key", HTMLButtonElement).addEventListener("click", () => {
    api.keepKey("");
    location.reload();
  });
}

/**
 * Another tab has changed a conversation. What it added is known here then; what is shown stays.
 * @param {string} id
 */
async function fromOtherTab(id) {
  await sidebar.draw();
  if (id !== session.conversation.id) return;
  session.stale = session.run !== null; // then it is looked at when this tab's own answer has ended
  if (session.stale) return;
  const latest = await store.find(id);
  if (!latest) {
    if (session.messages.size) tell("This conversation was deleted in another tab; what you send now keeps it.");
    return;
  }
  const { leaf } = session;
  for (const message of await store.messagesOf(id)) {
    session.messages.set(message.id, Object.assign(session.messages.get(message.id) ?? message, message));
  }
  Object.assign(session.conversation, { ...latest, leaf });
  if (latest.kind === "chat") draw();
}

function theme() {
  const names = { "": "Automatic", light: "Light", dark: "Dark" };
  const label = byId("theme-name", HTMLSpanElement);
  const root = document.documentElement;
  /** @param {string} chosen */
  const use = (chosen) => {
    if (chosen) root.dataset.theme = chosen;
    else delete root.dataset.theme;
    label.textContent = names[/** @type {keyof typeof names} */ (chosen)];
    byId("theme", HTMLButtonElement).setAttribute("aria-label", `Theme: ${label.textContent}`);
  };
  use(root.dataset.theme ?? "");
  byId("theme", HTMLButtonElement).addEventListener("click", () => {
    const all = Object.keys(names);
    const next = all[(all.indexOf(root.dataset.theme ?? "") + 1) % all.length] ?? "";
    use(next);
    try {
      localStorage.setItem("rk-theme", next);
    } catch {
      // For this time, then.
    }
  });
}

listen();
drawWelcome();
try {
  await open(location.hash.slice(1));
} catch {
  begin("chat"); // the list says that nothing is kept
}
await sidebar.draw();
await look();
