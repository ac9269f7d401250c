// The board: what is served, on what, and how it does.

import { stats } from "./api.js";
import { byId, icon, iconButton, make, rounded } from "./dom.js";

/** @typedef {import("./dom.js").Child} Child */

const EVERY_MS = 2000;
const GIB = 2 ** 30;

export class Panel {
  constructor() {
    this.place = byId("panel", HTMLElement);
    this.button = byId("board", HTMLButtonElement);
    this.button.addEventListener("click", () => this.toggle(this.place.hidden !== false));
    this.place.addEventListener("keydown", (event) => event.key === "Escape" && this.toggle(false));
    this.body = make("div", { class: "panel-body" });
    this.place.append(make("div", { class: "panel-head" }, make("h2", {}, "Board"), iconButton("close", "Close", () => this.toggle(false))), this.body);
    this.timer = 0;
    document.addEventListener("visibilitychange", () => this.look());
  }

  /** @param {boolean} shown */
  toggle(shown) {
    this.place.hidden = !shown;
    this.button.setAttribute("aria-expanded", String(shown));
    if (shown) this.place.focus();
    else this.button.focus();
    void this.look();
  }

  async look() {
    clearTimeout(this.timer);
    if (this.place.hidden || document.hidden) return;
    try {
      this.draw(await stats());
    } catch (error) {
      this.body.replaceChildren(make("p", { class: "wrong" }, error instanceof Error ? error.message : String(error)));
    }
    this.timer = window.setTimeout(() => this.look(), EVERY_MS);
  }

  /** @param {any} found */
  draw(found) {
    const { model, runtime, board, now, measured, predicted, sampling } = found;
    const simulated = runtime.simulated;
    const head = simulated
      ? make("p", { class: "note" }, icon("board"), "Simulated: no NPU is used. This computer computes what an NPU would, at its own speed.")
      : null;
    this.body.replaceChildren(...[
      head,
      section("Model", [
        ["Name", model.name], ["Dtype", model.dtype], ["File", `${model.file}, ${size(model.bytes)}`],
        ["Adapters", model.loras.join(", ")], ["Context", found.context ? `${found.context} tokens` : ""],
        ["Sampling", Object.entries(sampling).map(([name, value]) => `${name} ${value}`).join(", ")],
      ]),
      section("Runtime", [
        ["librkllmrt", `${runtime.version ?? "unknown release"}${simulated ? ", simulated" : ""}`],
        ["NPU driver", runtime.driver ?? (simulated ? "" : "cannot be read by the daemon")],
        ["State", found.reason ? `${found.state}: ${found.reason}` : found.state],
        ["Queue", `${found.queued} of ${found.queue_length} wait${found.running ? ", one is answered" : ""}`],
        ["Restarts", String(found.restarts)], ["Refusals", refusals(found.refusals)], ["Running for", duration(found.uptime_s)],
        ["Daemon", found.version],
      ]),
      speed(measured, predicted, simulated),
      section(board.name ? `Board: ${board.name}` : simulated ? "This computer" : "Board", [
        ["NPU load", ...now.npu_load.map((/** @type {number} */ load, /** @type {number} */ core) => bar(`core ${core}`, load, 100, `${load.toFixed(0)} %`))],
        ["Clocks", ...now.clocks.map((/** @type {any} */ clock) => bar(clock.name, clock.hertz, clock.max_hertz ?? clock.hertz, hertz(clock)))],
        ["Temperatures", ...Object.entries(now.temperatures).map(([zone, celsius]) => bar(zone, celsius, 110, `${celsius.toFixed(0)} °C`, celsius >= 85))],
        ["Memory", now.memory.total ? bar("used", now.memory.total - (now.memory.available ?? 0), now.memory.total, `${size(now.memory.total - now.memory.available)} of ${size(now.memory.total)}`) : ""],
        ["Processes", Object.entries(now.resident).map(([name, bytes]) => `${name} ${size(bytes)}`).join(", ")],
      ]),
    ].filter((each) => each !== null));
  }
}

/**
 * @param {string} title
 * @param {[string, ...Child[]][]} rows those without content are left out
 */
function section(title, rows) {
  const shown = rows.filter(([, ...content]) => content.some(Boolean));
  return make("section", {}, make("h3", {}, title), make("dl", {}, ...shown.flatMap(([name, ...content]) => [make("dt", {}, name), make("dd", {}, ...content)])));
}

/**
 * @param {any} measured
 * @param {any} predicted
 * @param {boolean} simulated
 */
function speed(measured, predicted, simulated) {
  /** @param {any} it */
  const interval = (it) => (it ? `${rounded(it.value)} (${rounded(it.low)} – ${rounded(it.high)})` : "–");
  const rows = [
    ["Answering, tok/s", rounded(measured.decode_tok_s), interval(predicted?.decode_tok_s)],
    ["Reading, tok/s", rounded(measured.prefill_tok_s), interval(predicted?.prefill_tok_s)],
  ];
  const told = predicted
    ? `Predicted for ${predicted.is_this_board ? "this" : "a"} ${predicted.board}, with its 90 % interval.`
    : "There is no prediction for this dtype.";
  return make("section", {}, make("h3", {}, "Speed"),
    make("table", {},
      make("thead", {}, make("tr", {}, make("td", {}), make("th", { scope: "col" }, simulated ? "measured here, simulated" : "measured"), make("th", { scope: "col" }, "predicted"))),
      make("tbody", {}, ...rows.map(([name, here, there]) => make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, here), make("td", {}, there))))),
    make("p", { class: "quiet" }, told, ` ${measured.answers} answers since it began, ${measured.completion_tokens} tokens.`));
}

/**
 * @param {string} name
 * @param {number} value
 * @param {number} most
 * @param {string} text
 */
function bar(name, value, most, text, hot = false) {
  const filled = make("span", { class: hot ? "filled hot" : "filled" });
  filled.style.width = `${Math.min(100, most ? (100 * value) / most : 0).toFixed(1)}%`;
  return make("div", { class: "bar-row" }, make("span", {}, name), make("span", { class: "track" }, filled), make("span", { class: "value" }, text));
}

/** @param {{hertz: number, governor: string}} clock */
function hertz({ hertz, governor }) {
  return `${hertz >= 1e9 ? `${(hertz / 1e9).toFixed(2)} GHz` : `${(hertz / 1e6).toFixed(0)} MHz`}${governor ? ` ${governor}` : ""}`;
}

/** @param {number} bytes */
function size(bytes) {
  return bytes >= GIB ? `${(bytes / GIB).toFixed(1)} GiB` : bytes >= 2 ** 20 ? `${(bytes / 2 ** 20).toFixed(0)} MiB` : `${(bytes / 1024).toFixed(0)} KiB`;
}

/** @param {Record<string, number>} counts */
function refusals(counts) {
  return Object.entries(counts).map(([reason, count]) => `${reason} ${count}`).join(", ");
}

/** @param {number} seconds */
function duration(seconds) {
  const minutes = Math.floor(seconds / 60);
  if (minutes < 1) return `${seconds} s`;
  return minutes < 60 ? `${minutes} min` : minutes < 2880 ? `${Math.floor(minutes / 60)} h ${minutes % 60} min` : `${Math.floor(minutes / 1440)} days`;
}
