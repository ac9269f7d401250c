// Questions to whoever reads the page.

import { byId, make } from "./dom.js";

/**
 * Asks in a dialog; resolves when it is closed, with whether it was by its main button.
 * @param {string} title
 * @param {HTMLElement[]} content
 * @param {string} accept
 * @param {{cancel?: string, danger?: boolean}} [more]
 * @returns {Promise<boolean>}
 */
export function ask(title, content, accept, { cancel = "Cancel", danger = false } = {}) {
  const dialog = byId("dialog", HTMLDialogElement);
  if (dialog.open) dialog.close();
  const before = document.activeElement;
  return new Promise((resolve) => {
    const form = make("form", { method: "dialog", onsubmit: (/** @type {Event} */ event) => {
      event.preventDefault();
      dialog.close("accepted");
    } },
    make("h2", { id: "dialog-title" }, title), ...content,
    make("div", { class: "bar" },
      cancel ? make("button", { type: "button", onclick: () => dialog.close() }, cancel) : null,
      make("button", { class: danger ? "danger" : "primary", type: "submit" }, accept)));
    dialog.returnValue = "";
    dialog.replaceChildren(form);
    dialog.addEventListener("close", () => {
      dialog.replaceChildren();
      if (before instanceof HTMLElement) before.focus();
      resolve(dialog.returnValue === "accepted");
    }, { once: true });
    dialog.showModal();
  });
}

/**
 * @param {string} name
 * @param {HTMLElement} input
 * @param {string} [help]
 */
export function field(name, input, help) {
  return make("label", { class: "field" }, make("span", {}, name), input, help ? make("small", {}, help) : null);
}

/**
 * The API key, or null if nobody gives one.
 * @param {string} wrong the key that was refused, if one was
 * @returns {Promise<string | null>}
 */
export async function askKey(wrong) {
  const input = make("input", { type: "password", autocomplete: "current-password", required: true, spellcheck: false, id: "key" });
  const told = wrong ? "This key is not known to the daemon. Look for a missing or an extra character." : "This daemon wants an API key.";
  const accepted = await ask("API key", [
    make("p", { role: wrong ? "alert" : undefined, class: wrong ? "wrong" : undefined }, told),
    make("p", { class: "quiet" }, "Whoever runs it has a file of keys; `rk3588 deploy` prints where the first one lies. It is kept in this browser, and sent to this daemon only."),
    field("Key", input),
  ], "Use this key", { cancel: "Not now" });
  return accepted ? input.value.trim() : null;
}

/**
 * Settings of a conversation, changed in place if they are accepted.
 * @param {import("./store.js").Conversation} conversation
 */
export async function askSettings(conversation) {
  const title = make("input", { value: conversation.title, maxLength: 200 });
  const system = make("textarea", { value: conversation.system, rows: 5, placeholder: "You are a helpful assistant." });
  const limit = make("input", { type: "number", min: "1", max: "1000000", step: "1", value: conversation.limit ? String(conversation.limit) : "", placeholder: "no limit but the context's" });
  const isChat = conversation.kind === "chat";
  const keys = [["Enter", "send"], ["Shift+Enter", "a new line"], ["Esc", "stop the answer"], ["↑ in an empty box", "edit the last message"], ["Ctrl+Shift+O", "new chat"], ["Ctrl+K", "search"]];
  const accepted = await ask("This conversation", [
    field("Name", title),
    ...(isChat ? [field("System prompt", system, "What the model is told before the conversation.")] : []),
    field("Most tokens of an answer", limit),
    make("details", {}, make("summary", {}, "Keys"), make("dl", { class: "keys" }, ...keys.flatMap(([name, does]) => [make("dt", {}, make("kbd", {}, name)), make("dd", {}, does)]))),
  ], "Save");
  if (!accepted) return false;
  conversation.named = title.value.trim() !== "";
  conversation.title = title.value.trim();
  conversation.system = system.value;
  conversation.limit = Number(limit.value) >= 1 ? Math.floor(Number(limit.value)) : null;
  return true;
}
