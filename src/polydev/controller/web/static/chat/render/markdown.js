/**
 * Renders a model's Markdown as elements: sanitized, without scripts, images or raw HTML.
 *
 * Three defenses, each sufficient alone: marked renders HTML as text; DOMPurify allows a short list
 * of elements and attributes; links and code blocks are rebuilt here. The Content-Security-Policy is
 * the fourth.
 *
 * While an answer streams in, only its last blocks are parsed and rendered again; finished blocks
 * keep their elements, so that nothing jumps and selections stay.
 */

import { Lexer, Marked, Parser } from "../../vendor/marked/marked.js";
import DOMPurify from "../../vendor/dompurify/purify.js";
import { icon } from "../../shared/ui.js";
import { copyButton, el } from "./dom.js";
import { bounded, oneLine, visible } from "./text.js";

const INLINE_LIMIT = 8_192; // characters per block that are parsed for emphasis and links
const SLOW = { ms: 1_000, length: 20_000 }; // text that is so long and so slow stays unrendered
const UNSETTLED = 2; // last blocks, which the next piece may still change

/** Markdown in an element, rendered as it arrives. */
export class MarkdownView {
  constructor(element) {
    this.element = element;
    this.blocks = []; // {raw, type, element}
    this.settled = { length: 0, blocks: 0 };
    this.plain = false;
  }

  /** Show the text; `done` when it is complete. */
  show(source, done) {
    const text = proseText(source);
    const started = performance.now();
    if (!this.plain) this.tryShow(text, done);
    const isLong = text.length - this.settled.length > SLOW.length;
    if (isLong && performance.now() - started > SLOW.ms) this.plain = true;
    if (this.plain) this.showPlain(text);
  }

  tryShow(text, done) {
    const { length, blocks } = done ? { length: 0, blocks: 0 } : this.settled;
    try {
      const tokens = tokensOf(text.slice(length));
      this.replace(blocks, tokens.filter(isShown), done && tokens.some((it) => it.type === "def"));
      if (!done) this.settle(tokens, text.length);
    } catch {
      this.plain = true; // nested too deeply for the parser
    }
  }

  /** Replace the blocks from `first` on; unchanged blocks keep their elements, except with `all`. */
  replace(first, tokens, all) {
    let same = 0;
    const isSame = (token) => token && this.blocks[first + same]?.raw === token.raw;
    while (!all && isSame(tokens[same])) same++;
    const old = this.blocks.splice(first + same);
    const fresh = tokens.slice(same);
    if (fresh.length && old.length && isExtended(old[0], fresh[0])) {
      this.blocks.push(extend(old.shift(), fresh.shift()));
    }
    for (const block of old) block.element.remove();
    const elements = render(fresh);
    fresh.forEach(({ raw, type, lang, text }, at) =>
      this.blocks.push({ raw, type, lang, text, element: elements[at] }));
    this.element.append(...elements);
  }

  settle(tokens, length) {
    const shown = tokens.filter(isShown).length;
    const first = this.settled;
    if (tokens.reduce((sum, token) => sum + token.raw.length, first.length) !== length) return;
    let settling = Math.max(0, shown - UNSETTLED);
    for (const token of tokens) {
      if (isShown(token) && settling-- <= 0) break;
      if (isShown(token)) this.settled.blocks++;
      this.settled.length += token.raw.length;
    }
  }

  showPlain(text) {
    if (!this.plainText) {
      this.plainText = document.createTextNode("");
      this.blocks = [];
      this.element.replaceChildren(el("pre", { class: "unrendered" }, this.plainText));
    }
    if (text.startsWith(this.plainText.data)) {
      this.plainText.appendData(text.slice(this.plainText.length));
    } else this.plainText.data = text;
  }
}

/** The text without direction overrides; marks that right-to-left text needs stay. */
function proseText(source) {
  const text = source.replace(/\r\n?/g, "\n");
  return text.replace(/[\u202a-\u202e\u2066-\u2069\p{Cc}\u{e0000}-\u{e0fff}]/gu, (character) =>
    character === "\n" || character === "\t" ? character : visible(character));
}

const marked = new Marked({
  gfm: true,
  renderer: {
    html: ({ text }) => escapeHtml(text),
    image: ({ href, text }) => `<a href="${escapeHtml(href)}">${escapeHtml(text || "image")}</a>`,
    link({ href, tokens }) {
      return `<a href="${escapeHtml(href)}">${this.parser.parseInline(tokens)}</a>`;
    },
    heading({ depth, tokens }) {
      const level = Math.min(depth + 2, 6); // h1 and h2 are the page's
      return `<h${level}>${this.parser.parseInline(tokens)}</h${level}>`;
    },
    code({ text, lang }) {
      const language = bounded((lang ?? "").split(/\s/)[0], 30);
      return `<pre data-language="${escapeHtml(language)}"><code>${escapeHtml(visible(text))}</code></pre>`;
    },
    codespan: ({ text }) => `<code>${escapeHtml(visible(text))}</code>`,
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
  },
});

const ALLOWED = {
  ALLOWED_TAGS: [
    ..."p br hr h3 h4 h5 h6 strong em del code pre blockquote ul ol li a div".split(" "),
    ..."table thead tbody tr th td".split(" "),
  ],
  ALLOWED_ATTR: ["href", "align", "start", "data-language"],
  ALLOW_ARIA_ATTR: false,
  ALLOW_DATA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

/** Block tokens with their inline tokens. Throws RangeError if nested too deeply. */
function tokensOf(text) {
  const lexer = new Lexer(marked.defaults);
  lexer.blockTokens(text, lexer.tokens);
  for (let i = 0; i < lexer.inlineQueue.length; i++) {
    const { src, tokens } = lexer.inlineQueue[i];
    if (src.length <= INLINE_LIMIT) lexer.inlineTokens(src, tokens);
    else tokens.push({ type: "text", raw: src, text: src, escaped: false });
  }
  return lexer.tokens;
}

function isShown(token) {
  return token.type !== "space" && token.type !== "def";
}

/** Render an element per token. */
function render(tokens) {
  if (!tokens.length) return [];
  const parser = new Parser(marked.defaults);
  const html = tokens.map((token) => `<div>${parser.parse([token])}</div>`).join("");
  const elements = [...DOMPurify.sanitize(html, ALLOWED).children];
  if (elements.length !== tokens.length) return tokens.map(({ raw }) => el("div", {}, raw));
  for (const element of elements) finish(element);
  return elements;
}

/** Rebuild links, code blocks and tables. */
function finish(element) {
  for (const link of element.querySelectorAll("a")) link.replaceWith(externalLink(link));
  for (const code of element.querySelectorAll("pre")) code.replaceWith(codeBlock(code));
  for (const item of element.querySelectorAll("li")) {
    item.classList.toggle("task", /^[☐☑] /.test(item.textContent));
  }
  for (const table of element.querySelectorAll("table")) {
    const frame = el("div", { class: "table-frame", tabindex: "0", role: "group" });
    frame.setAttribute("aria-label", "Table");
    table.replaceWith(frame);
    frame.append(table);
  }
}

/** A link that shows its host; without an external address, plain text. */
function externalLink(link) {
  const content = [...link.childNodes];
  const url = externalUrl(link.getAttribute("href"));
  if (!url) return el("span", {}, ...content);
  const host = url.protocol === "mailto:" ? "mail" : url.host;
  const attributes = { href: url.href, target: "_blank", rel: "noopener noreferrer nofollow" };
  const isPlain = !url.username && [url.href, `${url.href}/`].includes(`${link.textContent}/`);
  const hostLabel = isPlain ? null : el("span", { class: "link-host" }, oneLine(host, 80));
  return el("a", { class: "external-link", ...attributes }, ...content, hostLabel, icon("external"));
}

/** The address if it is external or a mailbox; else null. */
export function externalUrl(href) {
  try {
    const url = new URL(href);
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url : null;
  } catch {
    return null; // relative, or not an address
  }
}

function codeBlock(pre) {
  const code = el("code", {}, pre.textContent);
  const language = oneLine(pre.dataset.language ?? "", 30);
  const label = language ? `Code, ${language}` : "Code";
  const head = el("div", { class: "code-head" }, el("span", {}, language),
    copyButton(() => code.textContent, "Copy code"));
  const body = el("pre", { tabindex: "0", role: "group", "aria-label": label }, code);
  return el("div", { class: "code-block" }, head, body);
}

/** True if a code block was only extended. */
function isExtended(block, token) {
  return block.type === "code" && token.type === "code" && block.lang === token.lang
    && token.text.startsWith(block.text);
}

function extend(block, token) {
  const code = block.element.querySelector("pre code");
  const more = visible(token.text.slice(block.text.length));
  if (code.firstChild) code.firstChild.appendData(more);
  else code.append(more);
  return { ...block, raw: token.raw, text: token.text };
}

function escapeHtml(text) {
  const named = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
  return String(text).replace(/[&<>"']/g, (character) => named[character]);
}
