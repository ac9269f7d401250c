// The list of conversations: found, opened, named, kept as files.

import { byId, download, iconButton, make, say } from "./dom.js";
import { ask, field } from "./dialogs.js";
import * as store from "./store.js";

const MOST_SHOWN = 300; // the rest is found by searching
const SEARCH_MS = 200;

export class Sidebar {
  /** @param {{open: (id: string) => void, removing: (id: string) => void, removed: (id: string) => void, renamed: (id: string, title: string) => void}} actions */
  constructor(actions) {
    this.actions = actions;
    this.list = byId("conversations", HTMLUListElement);
    this.none = byId("no-conversations", HTMLParagraphElement);
    this.input = byId("search", HTMLInputElement);
    this.current = "";
    this.searching = new AbortController();
    this.drawing = 0;
    let timer = 0;
    this.input.addEventListener("input", () => {
      clearTimeout(timer);
      timer = window.setTimeout(() => this.draw(), SEARCH_MS);
    });
    byId("export", HTMLButtonElement).addEventListener("click", () => this.exportAll(null, "conversations"));
    const picker = byId("pick-import", HTMLInputElement);
    byId("import", HTMLButtonElement).addEventListener("click", () => picker.click());
    picker.addEventListener("change", async () => {
      const file = picker.files?.[0];
      picker.value = "";
      if (file) await this.importFile(file);
    });
  }

  async draw() {
    const words = this.input.value.trim();
    this.searching.abort();
    const { signal } = (this.searching = new AbortController());
    /** @type {store.Conversation[]} */
    let shown = [];
    let kept = true;
    try {
      shown = await store.all();
      if (words) {
        const found = await store.search(words, signal);
        shown = shown.filter(({ id }) => found.has(id));
      }
    } catch {
      kept = false;
    }
    if (signal.aborted) return;
    const focused = this.list.contains(document.activeElement) ? document.activeElement?.closest("li")?.dataset.id : undefined;
    this.list.replaceChildren(...shown.slice(0, MOST_SHOWN).map((conversation) => this.row(conversation)));
    if (focused) this.list.querySelector(`[data-id="${focused}"] button`)?.dispatchEvent(new Event("refocus"));
    const more = shown.length - MOST_SHOWN;
    this.none.hidden = shown.length > 0 && more <= 0;
    this.none.textContent = more > 0 ? `${more} more: search for them` : !kept ? "This browser keeps no conversations." : words ? "Nothing found" : "Conversations are kept in this browser.";
  }

  /** @param {store.Conversation} conversation */
  row(conversation) {
    const { id, title, kind } = conversation;
    const name = title || (kind === "text" ? "Plain text" : "Conversation");
    const open = make("button", { type: "button", class: "open", title: name, onclick: () => this.actions.open(id) }, name);
    if (id === this.current) open.setAttribute("aria-current", "true");
    const row = make("li", {}, open,
      iconButton("edit", `Rename: ${name}`, () => this.rename(conversation)),
      iconButton("export", `Export: ${name}`, () => this.exportAll([id], name)),
      iconButton("delete", `Delete: ${name}`, () => this.remove(conversation, name)));
    row.dataset.id = id;
    open.addEventListener("refocus", () => open.focus());
    return row;
  }

  /** @param {string} id */
  mark(id) {
    this.current = id;
    for (const row of this.list.children) {
      const open = row.querySelector("button");
      if (row instanceof HTMLElement && row.dataset.id === id) open?.setAttribute("aria-current", "true");
      else open?.removeAttribute("aria-current");
    }
  }

  /** @param {store.Conversation} conversation */
  async rename(conversation) {
    const input = make("input", { value: conversation.title, maxLength: 200, required: true });
    if (!(await ask("Rename", [field("Name", input)], "Save"))) return;
    const latest = await store.find(conversation.id);
    if (!latest || !input.value.trim()) return;
    const title = input.value.trim();
    this.actions.renamed(conversation.id, title); // first: an answer under way keeps its conversation as it knows it
    await store.keep({ ...latest, title, named: true });
    this.actions.open(this.current === conversation.id ? conversation.id : "");
    await this.draw();
  }

  /**
   * @param {store.Conversation} conversation
   * @param {string} name
   */
  async remove(conversation, name) {
    const sure = await ask("Delete this conversation?", [make("p", {}, name), make("p", { class: "quiet" }, "It is kept nowhere else, unless you have exported it.")], "Delete", { danger: true });
    if (!sure) return;
    this.actions.removing(conversation.id);
    await store.remove(conversation.id);
    this.actions.removed(conversation.id);
    await this.draw();
  }

  /**
   * @param {string[] | null} ids
   * @param {string} name
   */
  async exportAll(ids, name) {
    const safe = name.replace(/[^\p{L}\p{N} _-]+/gu, " ").trim().slice(0, 60) || "conversation";
    download(`${safe}.json`, await store.exported(ids));
  }

  /** @param {Blob} file */
  async importFile(file) {
    try {
      const found = await store.imported(file);
      say(`${found.length} imported`);
      await this.draw();
      const first = found[0];
      if (first) this.actions.open(first.id);
    } catch (error) {
      await ask("Import", [make("p", { role: "alert" }, `Nothing was imported: ${error instanceof Error ? error.message : error}.`)], "Close", { cancel: "" });
    }
  }
}
