// A model's Markdown as elements. HTML in it is text, pictures are not loaded, links show where they lead: whoever
// talked the model into something must not reach out of it.

import DOMPurify from "./vendor/dompurify.js";
import { Lexer, Marked } from "./vendor/marked.js";
import { copyButton, make } from "./dom.js";

// Characters; what is longer is shown as it is. No text of a model's is; the parser's time grows as the square.
const MOST_RENDERED = 100_000;
const MOST_OF_PARAGRAPH = 8_000;
const MOST_OF_LINE = 3_000;
const MOST_OF_ITEM = 20_000; // of a list's item without an empty line
const ITEM = /^[> ]*(?:[-*+]|\d{1,9}[.)])\s/;
const NEXT = new RegExp(`\\n\\s*\\n|\\n(?=${ITEM.source.slice(1)})`);
const CLEAN = {
  RETURN_DOM_FRAGMENT: true,
  ALLOWED_TAGS: [
    "a", "blockquote", "br", "code", "del", "div", "em", "h2", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre",
    "span", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul",
  ],
  ALLOWED_ATTR: ["align", "class", "href", "rel", "start", "target"],
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
};

/** @param {string} text */
function escaped(text) {
  return text.replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);
}

/**
 * The address as the browser understands it, with the tricks taken out of it; null for what no link may lead to.
 * @param {string} href
 */
function address(href) {
  try {
    const url = new URL(href);
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
  } catch {
    return null; // relative ones would lead to this server
  }
}

/**
 * Maths stays as it was written: Markdown would take its backslashes, underscores and stars for its own. A block begins
 * with a line and has its end not far away; where it has none, the paragraph must not end, for the parser looks from
 * each one's beginning as far as lines follow each other.
 */
const BLOCK = /^ {0,3}(?:\$\$[^]{1,2000}?\$\$|\\\[[^]{1,2000}?\\\])(?=\s*(?:\n|$))/;
const MATHS = [
  { name: "mathBlock", level: "block", begins: new RegExp(`\\n(?=${BLOCK.source.slice(1)})`), whole: BLOCK },
  { name: "mathInline", level: "inline", begins: /\$|\\\(|\\\[/, whole: /^(?:\$\$[^$\n]+\$\$|\$(?!\s)[^$\n]*[^$\s\\]\$(?!\d)|\\\([^\n]+?\\\)|\\\[[^\n]+?\\\])/ },
].map(({ name, level, begins, whole }) => ({
  name,
  level: /** @type {"block" | "inline"} */ (level),
  /** @param {string} source */
  start: (source) => source.match(begins)?.index,
  /** @param {string} source */
  tokenizer: (source) => {
    const found = source.match(whole);
    return found ? { type: name, raw: found[0] } : undefined;
  },
  /** @param {{raw: string}} token */
  renderer: ({ raw }) => (level === "block" ? `<div class="math">${escaped(raw.trim())}</div>` : `<span class="math">${escaped(raw)}</span>`),
}));

const marked = new Marked({
  gfm: true,
  breaks: true,
  extensions: /** @type {any} */ (MATHS),
  renderer: {
    html: ({ text }) => escaped(text),
    image: ({ href, text }) => `<span class="picture">[picture: ${escaped(text || "without a name")}, ${escaped(address(href) ?? href)}]</span>`,
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
    heading({ tokens, depth }) {
      const tag = `h${Math.min(depth + 2, 6)}`;
      return `<${tag}>${this.parser.parseInline(tokens)}</${tag}>`;
    },
    link({ href, tokens }) {
      const url = address(href);
      const text = this.parser.parseInline(tokens);
      if (!url) return `${text} (${escaped(href)})`;
      const said = tokens.map(({ raw }) => raw).join("");
      const shown = said === url || `${said}/` === url || `mailto:${said}` === url ? "" : ` <span class="address">(${escaped(url)})</span>`;
      return `<a href="${escaped(url)}" target="_blank" rel="noopener noreferrer nofollow">${text}${shown}</a>`;
    },
  },
});

/**
 * Makes `place` show `text`. Blocks that have not changed are left alone: what is selected in them stays selected.
 * @param {HTMLElement} place
 * @param {string} text
 * @param {boolean} final the text is whole: everything is drawn anew, for a later line may change an earlier one
 */
export function render(place, text, final) {
  if (text.length > MOST_RENDERED || hasEndlessItem(text)) {
    place.replaceChildren(make("pre", { class: "whole", tabIndex: 0 }, text));
    return;
  }
  try {
    const drawn = final ? [] : drawnBlocks.get(place) ?? [];
    const { blocks, links } = split(text);
    let same = 0;
    while (same < drawn.length && same < blocks.length && drawn[same]?.raw === blocks[same]?.raw) same += 1;
    for (const { nodes } of drawn.splice(same)) for (const node of nodes) node.remove();
    if (final || !same) place.replaceChildren();
    for (const block of blocks.slice(same)) {
      const nodes = draw(block, links);
      drawn.push({ raw: block.raw, nodes });
      place.append(...nodes);
    }
    drawnBlocks.set(place, drawn);
  } catch {
    // Nested too deeply for the parser: nobody can read it as Markdown, either.
    drawnBlocks.delete(place);
    place.replaceChildren(make("pre", { class: "whole", tabIndex: 0 }, text));
  }
}

/** @param {string} text */
function hasEndlessItem(text) {
  return text.length > MOST_OF_ITEM && text.split(NEXT).some((part) => part.length > MOST_OF_ITEM && ITEM.test(part));
}

/**
 * Paragraphs, lists, code and so on, and where its references lead.
 * @param {string} text
 */
function split(text) {
  const lexer = new Lexer(marked.defaults);
  const blocks = lexer.blockTokens(text.replace(/\r\n?/g, "\n"), lexer.tokens).filter(({ type }) => type !== "space");
  return { blocks, links: lexer.tokens.links };
}

/**
 * @param {{type: string, raw: string}} block
 * @param {import("./vendor/marked.js").Links} links
 * @returns {ChildNode[]}
 */
function draw({ type, raw }, links) {
  const long = type !== "code" && raw.split("\n").some((line) => line.length > MOST_OF_LINE);
  if (long || (type === "paragraph" && raw.length > MOST_OF_PARAGRAPH)) return [make("p", { class: "as-is" }, raw)];
  const lexer = new Lexer(marked.defaults);
  Object.assign(lexer.tokens.links, links);
  return elements(marked.parser(lexer.lex(raw)));
}

/** @type {WeakMap<HTMLElement, {raw: string, nodes: ChildNode[]}[]>} */
const drawnBlocks = new WeakMap();

/**
 * @param {string} html of the parser
 * @returns {ChildNode[]}
 */
function elements(html) {
  const fragment = /** @type {DocumentFragment} */ (/** @type {unknown} */ (DOMPurify.sanitize(html, CLEAN)));
  for (const table of fragment.querySelectorAll("table")) {
    const around = make("div", { class: "table", role: "region", "aria-label": "Table", tabIndex: 0 });
    table.replaceWith(around);
    around.append(table);
  }
  for (const code of fragment.querySelectorAll("pre > code")) {
    const box = code.parentElement;
    if (!box) continue;
    const language = /language-([\w+#.-]{1,30})/.exec(code.className)?.[1] ?? "";
    const around = make("div", { class: "code" });
    box.replaceWith(around);
    box.tabIndex = 0;
    around.append(make("div", { class: "code-head" }, make("span", {}, language), copyButton("", "Copy this code", () => (code.textContent ?? "").replace(/\n$/, ""))), box);
  }
  return [...fragment.childNodes].filter((node) => node instanceof Element || node.textContent?.trim());
}
