// How messages look, and what can be done with each.

import { cutOff, isFull } from "./answer.js";
import { copyButton, icon, iconButton, make, rounded } from "./dom.js";
import { render } from "./markdown.js";

/** @typedef {import("./store.js").Message} Message */
/** @typedef {import("./session.js").Session} Session */

/**
 * @typedef {object} Actions
 * @property {(message: Message) => void} retry
 * @property {(message: Message) => void} resume
 * @property {(message: Message, text: string) => void} edit
 * @property {(message: Message) => void} show
 */

export class MessageList {
  /**
   * @param {HTMLElement} place
   * @param {HTMLElement} scroller
   * @param {Actions} actions
   */
  constructor(place, scroller, actions) {
    this.place = place;
    this.scroller = scroller;
    this.actions = actions;
    this.contextLength = 0; // tokens; 0: not known
    /** @type {Map<string, Row>} */
    this.rows = new Map();
    /** @type {Set<Message>} */
    this.dirty = new Set();
    this.frame = 0;
    this.rest = 0; // until when the next drawing waits
    this.follows = true; // the end of the conversation, as long as nobody scrolls away from it
    scroller.addEventListener("scroll", () => {
      this.follows = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 60;
    }, { passive: true });
    // Another width makes other lines.
    new ResizeObserver(() => this.toEnd()).observe(scroller);
  }

  /**
   * All of a conversation's shown branch.
   * @param {Session | null} session
   */
  draw(session) {
    this.session = session;
    const path = session?.path() ?? [];
    const kept = new Map();
    for (const message of path) {
      const row = this.rows.get(message.id) ?? new Row(message);
      row.draw(message, /** @type {Session} */ (session), this.actions, message === path.at(-1), this.contextLength);
      kept.set(message.id, row);
    }
    for (const [id, row] of this.rows) if (!kept.has(id)) row.element.remove();
    this.rows = kept;
    let at = this.place.firstElementChild;
    for (const { element } of kept.values()) {
      if (at && element === at) at = at.nextElementSibling;
      else this.place.insertBefore(element, at);
    }
    this.toEnd();
  }

  /**
   * A message whose text has grown: drawn with the next frame, however many pieces come until then.
   * @param {Message} message
   */
  update(message) {
    this.dirty.add(message);
    if (this.frame) return;
    this.frame = 1;
    const draw = () => requestAnimationFrame(() => {
      const began = performance.now();
      this.frame = 0;
      for (const each of this.dirty) {
        const run = this.session?.run;
        this.rows.get(each.id)?.drawText(each, run?.message === each ? run : null);
      }
      this.dirty.clear();
      this.toEnd();
      this.rest = began + 4 * (performance.now() - began);
    });
    // Drawing what takes long must leave time for typing and for stopping it.
    const pause = this.rest - performance.now();
    if (pause > 20) setTimeout(draw, pause);
    else draw();
  }

  toEnd() {
    if (this.follows) this.scroller.scrollTop = this.scroller.scrollHeight;
  }
}

/** One message. */
class Row {
  /** @param {Message} message */
  constructor(message) {
    const name = message.role === "user" ? "You" : "Answer";
    this.body = make("div", { class: "md" });
    this.thought = make("details", { class: "thought", hidden: true });
    this.thoughtText = make("div", { class: "md" });
    this.thoughtName = make("span", {}, "Thoughts");
    this.thought.append(make("summary", {}, this.thoughtName), this.thoughtText);
    this.calls = make("div", { class: "calls", hidden: true });
    this.foot = make("div", { class: "foot" });
    this.waiting = make("p", { class: "waiting", hidden: true });
    const only = message.role === "user" ? [this.body] : [this.thought, this.body, this.calls, this.waiting];
    this.parts = make("div", { class: "parts" }, ...only);
    this.element = make("article", { class: message.role, "aria-label": name }, make("h2", { class: "hidden" }, name), this.parts, this.foot);
  }

  /**
   * @param {Message} message
   * @param {Session} session
   * @param {Actions} actions
   * @param {boolean} last
   * @param {number} contextLength
   */
  draw(message, session, actions, last, contextLength) {
    const running = session.run?.message === message;
    this.element.classList.toggle("running", running);
    this.element.classList.toggle("last", last);
    if (message.role === "user") this.drawQuestion(message);
    else this.drawText(message, running ? session.run : null);
    const busy = session.run !== null;
    this.foot.replaceChildren(...[
      !running && this.problem(message, actions, last && !busy, contextLength, session.full.has(message.id)),
      make("div", { class: "actions" }, ...this.buttons(message, session, actions, busy, last)),
    ].filter((each) => each !== false && each !== null));
    this.foot.hidden = running;
  }

  /** @param {Message} message */
  drawQuestion({ text, files }) {
    if (this.parts.querySelector("textarea")) return; // it is being edited
    this.body.className = "said";
    this.body.textContent = text;
    this.body.hidden = !text;
    this.parts.querySelector(".files")?.remove();
    if (files.length) this.parts.prepend(make("ul", { class: "files", "aria-label": "Files" }, ...files.map(fileChip)));
  }

  /**
   * @param {Message} message
   * @param {Session["run"]} run
   */
  drawText(message, run) {
    const { text, thought, calls } = message;
    render(this.body, text, !run);
    this.body.hidden = !text;
    this.thought.hidden = !thought;
    if (thought) {
      this.thoughtName.textContent = run && !text ? "Thinking…" : "Thoughts";
      render(this.thoughtText, thought, !run);
    }
    this.calls.hidden = !calls.length;
    if (calls.length) this.calls.replaceChildren(...calls.map(callBox));
    const sentence = run?.waiting || (run && !text && !thought && !calls.length ? "…" : "");
    this.waiting.hidden = !sentence;
    this.waiting.textContent = sentence;
    this.waiting.classList.toggle("dots", sentence === "…");
  }

  /**
   * What went wrong with an answer, or cut it off.
   * @param {Message} message
   * @param {Actions} actions
   * @param {boolean} open whether something can be done about it
   * @param {number} contextLength
   * @param {boolean} full whether the daemon said that there is no room to go on
   */
  problem(message, actions, open, contextLength, full) {
    const told = {
      failed: message.error, stopped: "Stopped.", partial: "This answer was interrupted.", done: "",
      length: `Cut off: ${cutOff(message.limit, message.context, contextLength)}.`,
    }[message.state];
    if (message.role === "user" || !told) return null;
    const ways = [];
    if (open && message.state !== "done") {
      if (message.text && !message.thought && !full && !isFull(message.context, contextLength)) ways.push(make("button", { type: "button", onclick: () => actions.resume(message) }, icon("resume"), "Continue"));
      ways.push(make("button", { type: "button", onclick: () => actions.retry(message) }, icon("redo"), "Try again"));
    }
    return make("div", { class: `problem ${message.state}`, role: message.state === "failed" ? "alert" : undefined }, make("p", {}, told), ...ways);
  }

  /**
   * @param {Message} message
   * @param {Session} session
   * @param {Actions} actions
   * @param {boolean} busy
   * @param {boolean} last
   */
  buttons(message, session, actions, busy, last) {
    const all = session.siblings(message);
    const at = all.indexOf(message);
    const found = [];
    if (all.length > 1) {
      /** @param {number} step @param {string} name @param {string} picture */
      const go = (step, name, picture) => {
        const other = all[at + step];
        const button = iconButton(picture, name, () => other && actions.show(other));
        button.disabled = !other || busy;
        return button;
      };
      found.push(go(-1, "Version before", "left"), make("span", { class: "quiet" }, `${at + 1} / ${all.length}`), go(1, "Version after", "right"));
    }
    if (message.text) found.push(copyButton(message.text, message.role === "user" ? "Copy message" : "Copy answer"));
    if (message.role === "user") {
      const edit = iconButton("edit", "Edit message", () => this.edit(message, actions));
      edit.disabled = busy;
      found.push(edit);
    } else if (last && message.state === "done") {
      const again = iconButton("redo", "Answer again", () => actions.retry(message));
      again.disabled = busy;
      found.push(again);
    }
    if (message.role === "assistant") found.push(make("span", { class: "figures" }, figures(message)));
    return found;
  }

  /**
   * @param {Message} message
   * @param {Actions} actions
   */
  edit(message, actions) {
    if (this.parts.querySelector("textarea")) return;
    const area = make("textarea", { value: message.text, "aria-label": "Edit message", rows: Math.min(message.text.split("\n").length + 1, 12) });
    const done = () => {
      box.remove();
      this.body.hidden = !message.text;
      this.foot.hidden = false;
      this.element.classList.remove("editing");
    };
    const send = () => {
      const text = area.value.trim();
      if (!text && !message.files.length) return;
      done();
      actions.edit(message, text);
    };
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") done();
      else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    const box = make("div", { class: "edit" }, area, make("div", { class: "bar" },
      make("button", { type: "button", onclick: done }, "Cancel"),
      make("button", { type: "button", class: "primary", onclick: send }, "Send")));
    this.body.hidden = this.foot.hidden = true;
    this.element.classList.add("editing");
    this.parts.append(box);
    area.focus();
  }
}

/** @param {import("./store.js").TextFile} file */
function fileChip({ name, text }) {
  const lines = text.replace(/\n$/, "").split("\n").length;
  return make("li", {}, make("details", {}, make("summary", {}, icon("file"), name, make("span", { class: "quiet" }, ` ${lines} ${lines === 1 ? "line" : "lines"}`)), make("pre", { tabIndex: 0 }, text.slice(0, 20_000))));
}

/** @param {import("./store.js").Call} call */
function callBox({ name, arguments: text }) {
  let shown = text;
  try {
    shown = JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    // As the model wrote it.
  }
  return make("div", { class: "call" }, make("p", {}, "Calls ", make("code", {}, name)), make("pre", { tabIndex: 0 }, shown));
}

/** @param {Message} message */
function figures({ tokens, rate, first }) {
  const parts = [];
  if (tokens) parts.push(`${tokens} ${tokens === 1 ? "token" : "tokens"}`);
  if (rate) parts.push(`${rounded(rate)} tok/s`);
  if (first) parts.push(`first after ${rounded(first)} s`);
  return parts.join(" · ");
}
