// Text files that go with a message.

import { byId, icon, iconButton, make } from "./dom.js";

/** @typedef {import("./store.js").TextFile} TextFile */

const MOST_BYTES = 512 << 10; // far more than a context of 4096 tokens takes
const MOST_FILES = 20;

export class Files {
  /** @param {(sentence: string) => void} warn */
  constructor(warn) {
    this.warn = warn;
    /** @type {TextFile[]} */
    this.chosen = [];
    this.place = byId("files", HTMLUListElement);
    const picker = byId("pick-files", HTMLInputElement);
    byId("attach", HTMLButtonElement).addEventListener("click", () => picker.click());
    picker.addEventListener("change", async () => {
      await this.add([...(picker.files ?? [])]);
      picker.value = "";
    });
    const main = byId("main", HTMLElement);
    main.addEventListener("dragover", (event) => {
      if (!event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      main.classList.add("dropping");
    });
    main.addEventListener("dragleave", (event) => {
      if (!(event.relatedTarget instanceof Node && main.contains(event.relatedTarget))) main.classList.remove("dropping");
    });
    main.addEventListener("drop", async (event) => {
      main.classList.remove("dropping");
      if (!event.dataTransfer?.files.length) return;
      event.preventDefault();
      await this.add([...event.dataTransfer.files]);
    });
    byId("say", HTMLTextAreaElement).addEventListener("paste", async (event) => {
      if (!event.clipboardData?.files.length) return;
      event.preventDefault();
      await this.add([...event.clipboardData.files]);
    });
  }

  /** @param {File[]} given */
  async add(given) {
    for (const file of given) {
      const problem = await this.take(file);
      if (problem) this.warn(`${file.name} was not added: ${problem}.`);
    }
    this.draw();
  }

  /**
   * @param {File} file
   * @returns {Promise<string>} what is wrong with it
   */
  async take(file) {
    if (this.chosen.length >= MOST_FILES) return `a message takes ${MOST_FILES} files`;
    if (file.size > MOST_BYTES) return `it is larger than ${MOST_BYTES >> 10} KiB, and would not fit the context`;
    let text;
    try {
      text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
    } catch {
      return "it is no text, or not UTF-8";
    }
    if (text.includes("\0")) return "it is no text";
    this.chosen.push({ name: file.name.slice(0, 200), text });
    return "";
  }

  /** @returns {TextFile[]} what was chosen, which is gone from here then */
  takeAll() {
    const found = this.chosen;
    this.chosen = [];
    this.draw();
    return found;
  }

  draw() {
    this.place.hidden = !this.chosen.length;
    this.place.replaceChildren(...this.chosen.map((file) => make("li", {}, icon("file"), file.name, iconButton("close", `Remove ${file.name}`, () => {
      this.chosen = this.chosen.filter((each) => each !== file);
      this.draw();
      byId("say", HTMLTextAreaElement).focus();
    }))));
  }
}
