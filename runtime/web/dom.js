// Making elements, without strings of HTML.

/** @typedef {Node | string | null | false | undefined} Child */

const SVG = "http://www.w3.org/2000/svg";

/** @type {Record<string, string>} */
const ICONS = {
  attach: "M21 11.5 12.5 20a5.5 5.5 0 0 1-7.8-7.8l8.6-8.6a3.7 3.7 0 0 1 5.2 5.2l-8.6 8.6a1.8 1.8 0 0 1-2.6-2.6l7.9-7.8",
  board: "M7 7h10v10H7zM10 3v4m4-4v4m-4 10v4m4-4v4M3 10h4m-4 4h4m10-4h4m-4 4h4",
  check: "m5 12.5 4.5 4.5L19 7.5",
  close: "M6 6l12 12M18 6 6 18",
  copy: "M9 9h11v11H9zM15 9V4H4v11h5",
  delete: "M4 7h16M9 7V4h6v3m-8.5 0 1 13h9l1-13M10 11v5m4-5v5",
  edit: "M4 20h4L19.5 8.5a2.1 2.1 0 0 0-4-4L4 16zM14 6l4 4",
  export: "M12 15V4m-4 4 4-4 4 4M5 14v6h14v-6",
  file: "M6 3h8l4 4v14H6zM14 3v4h4",
  import: "M12 4v11m-4-4 4 4 4-4M5 14v6h14v-6",
  key: "M14 10a4 4 0 1 1-1.2-2.8L21 7v4h-3v3h-3v-3.2",
  left: "m15 5-7 7 7 7",
  menu: "M4 6h16M4 12h16M4 18h16",
  plus: "M12 5v14M5 12h14",
  redo: "M20 11a8 8 0 1 0-2.3 6.3M20 5v6h-6",
  right: "m9 5 7 7-7 7",
  resume: "M5 5v14l9-7zM18 5v14",
  send: "M12 20V5m-6 6 6-6 6 6",
  settings: "M4 7h10m4 0h2M4 17h2m4 0h10M16 4.8a2.2 2.2 0 1 0 .01 0zM8 14.8a2.2 2.2 0 1 0 .01 0z",
  stop: "M7 7h10v10H7z",
  text: "M5 5h14M5 10h14M5 15h9M5 20h5",
  theme: "M12 3a9 9 0 1 0 9 9 7 7 0 0 1-9-9z",
};

/**
 * The element of the page with this id.
 * @template {HTMLElement} T
 * @param {string} id
 * @param {new () => T} kind
 * @returns {T}
 */
export function byId(id, kind) {
  const found = document.getElementById(id);
  if (!(found instanceof kind)) throw new Error(`the page has no ${id}`);
  return found;
}

/**
 * A new element. Properties that begin with `on` are listeners, `class` and those with a dash are attributes.
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Record<string, any>} [properties]
 * @param {...Child} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class" || name === "role" || name === "for" || name.includes("-")) element.setAttribute(name, String(value));
    else Object.assign(element, { [name]: value });
  }
  element.append(.../** @type {(Node | string)[]} */ (children.filter(Boolean)));
  return element;
}

/**
 * @param {string} name
 * @returns {SVGSVGElement}
 */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name] ?? "");
  svg.append(path);
  return svg;
}

/**
 * A button with an icon and a name that is read aloud and shown when one points at it.
 * @param {string} picture
 * @param {string} name
 * @param {(event: Event) => void} onclick
 */
export function iconButton(picture, name, onclick) {
  return make("button", { class: "icon", type: "button", title: name, "aria-label": name, onclick }, icon(picture));
}

/** Puts the icons into what the page's own text has. */
export function drawIcons() {
  for (const place of document.querySelectorAll("[data-icon]")) {
    place.replaceWith(icon(place.getAttribute("data-icon") ?? ""));
  }
}

/**
 * Copies a text; also where the browser has no clipboard for pages without TLS.
 * @param {string} text
 * @returns {Promise<boolean>}
 */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const before = document.activeElement;
    const area = make("textarea", { class: "hidden", value: text, readOnly: true });
    (document.querySelector("dialog[open]") ?? document.body).append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    if (before instanceof HTMLElement) before.focus();
    return done;
  }
}

/**
 * @param {string} text
 * @returns {HTMLButtonElement}
 */
export function copyButton(text, name = "Copy", get = () => text) {
  const button = iconButton("copy", name, async () => {
    const done = await copy(get());
    button.replaceChildren(icon(done ? "check" : "close"));
    say(done ? "Copied" : "This browser does not let a page copy: select the text and copy it yourself");
    setTimeout(() => button.replaceChildren(icon("copy")), 1500);
  });
  return button;
}

/**
 * Tells a screen reader.
 * @param {string} text
 */
export function say(text) {
  byId("said", HTMLParagraphElement).textContent = text;
}

/**
 * Offers a text as a file to be kept.
 * @param {string} name
 * @param {string} text
 */
export function download(name, text) {
  const address = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  make("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

/** An id that is nobody else's; crypto.randomUUID is only there with TLS. */
export function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * @param {number | null | undefined} value
 * @returns {string}
 */
export function rounded(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  return value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2);
}
