// Plain completion: a text, which the model goes on with where it ends.

import { Failure } from "./api.js";
import { cutOff, read } from "./answer.js";
import { byId, rounded } from "./dom.js";
import { titleOf } from "./session.js";
import * as store from "./store.js";

const KEEP_MS = 600;

export class PlainText {
  /** @param {{kept: () => void, failed: (failure: Failure) => void}} actions */
  constructor(actions) {
    this.actions = actions;
    this.area = byId("document", HTMLTextAreaElement);
    this.button = byId("go-on", HTMLButtonElement);
    this.back = byId("take-back", HTMLButtonElement);
    this.status = byId("text-status", HTMLSpanElement);
    /** @type {store.Conversation | null} */
    this.conversation = null;
    /** @type {AbortController | null} */
    this.run = null;
    this.contextLength = 0; // tokens; 0: not known
    this.before = ""; // the text as it was before the model went on with it
    this.timer = 0;
    this.area.addEventListener("input", () => {
      this.back.disabled = true;
      clearTimeout(this.timer);
      this.timer = window.setTimeout(() => this.keep(), KEEP_MS);
    });
    this.area.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) void this.goOn();
    });
    this.button.addEventListener("click", () => (this.run ? this.run.abort() : this.goOn()));
    this.back.addEventListener("click", () => {
      this.area.value = this.before;
      this.back.disabled = true;
      void this.keep();
    });
  }

  /** @param {store.Conversation} conversation */
  open(conversation) {
    this.close();
    this.conversation = conversation;
    this.area.value = conversation.text;
    this.back.disabled = true;
    this.status.textContent = "Ctrl+Enter goes on";
  }

  /**
   * Before it is deleted: nothing of it is kept from now on.
   * @param {string} id
   */
  forget(id) {
    if (this.conversation?.id !== id) return;
    clearTimeout(this.timer);
    this.run?.abort();
    this.conversation = null;
  }

  close() {
    this.run?.abort();
    if (this.conversation && this.area.value !== this.conversation.text) void this.keep();
    this.conversation = null;
  }

  async keep() {
    clearTimeout(this.timer);
    const { conversation } = this;
    if (!conversation) return;
    conversation.text = this.area.value;
    if (!conversation.named) conversation.title = titleOf(conversation.text) || "Plain text";
    conversation.updated = Date.now();
    try {
      await store.keep(conversation);
    } catch {
      this.status.textContent = "This browser does not keep the text.";
    }
    this.actions.kept();
  }

  async goOn() {
    const { conversation } = this;
    if (this.run || !conversation) return;
    if (!this.area.value) {
      this.status.textContent = "Write a beginning first.";
      this.area.focus();
      return;
    }
    const controller = (this.run = new AbortController());
    const before = (this.before = this.area.value);
    this.area.readOnly = this.back.disabled = true;
    this.button.textContent = "Stop";
    const body = { model: conversation.model || undefined, prompt: before, ...(conversation.limit ? { max_tokens: conversation.limit } : {}) };
    let told = "";
    try {
      const { ended, tokens, context } = await read("/v1/completions", body, controller.signal, (found) => {
        if (this.conversation !== conversation) return;
        this.area.value = before + found.text;
        this.area.scrollTop = this.area.scrollHeight;
        told = `${found.tokens} tokens${found.rate ? ` · ${rounded(found.rate)} tok/s` : ""}`;
        this.status.textContent = told;
      }, (sentence) => (this.status.textContent = sentence));
      const limit = conversation.limit && (tokens ?? 0) >= conversation.limit ? conversation.limit : null;
      if (ended === "length") told += ` · cut off: ${cutOff(limit, context, this.contextLength)}`;
    } catch (error) {
      if (!controller.signal.aborted) {
        told = error instanceof Failure ? error.message : String(error);
        if (error instanceof Failure) this.actions.failed(error);
      } else told += " · stopped";
    } finally {
      this.run = null;
      this.area.readOnly = false;
      this.button.textContent = "Go on";
      if (this.conversation === conversation) {
        this.status.textContent = told;
        this.back.disabled = this.area.value === before;
        await this.keep();
      }
    }
  }
}
