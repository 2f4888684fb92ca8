/**
 * What a tool call or a request for permission shows: texts, outputs of commands, diffs.
 */

import { diff } from "./diff.js";
import { copyButton, el } from "./dom.js";
import { bounded, count, shortPath, terminalText, visible } from "./words.js";

const LINES_AT_FIRST = 40;
const MOST_LINES = 5000;
const LIMIT = 200_000; // characters of one text

/** The elements of a list of contents; what is unknown is left out. */
export function contents(list) {
  return list.map(content).filter(Boolean);
}

/** How many lines the diffs of a list bring and take, or null without any. */
export function changes(list) {
  const diffs = list.filter((item) => item?.type === "diff");
  if (!diffs.length) return null;
  const sums = { added: 0, removed: 0 };
  for (const item of diffs) {
    const { added, removed } = diffOf(item);
    sums.added += added;
    sums.removed += removed;
  }
  return sums;
}

function content(item) {
  if (item?.type === "diff") return diffView(item);
  if (item?.type === "terminal") return output(terminalText(cut(item.text)), "Output");
  if (item?.type === "text") return output(visible(cut(item.text)), "Text");
  return null;
}

function cut(text) {
  return bounded(String(text ?? ""), LIMIT);
}

/** A text as it is, of which the end is folded away if it is long. */
function output(text, label) {
  if (text.trim() === "") return null;
  const lines = text.replace(/\n+$/, "").split("\n");
  const code = el("code", {}, lines.slice(0, LINES_AT_FIRST).join("\n"));
  const pre = el("pre", { tabindex: "0", role: "group", "aria-label": label }, code);
  const box = el("div", { class: "output" }, pre, copyButton(() => text, "Copy text"));
  if (lines.length > LINES_AT_FIRST) {
    box.append(more(lines.length, () => (code.textContent = lines.join("\n"))));
  }
  return box;
}

function diffView(item) {
  const { hunks, added, removed } = diffOf(item);
  const rows = hunks.flatMap((hunk) => [{ header: hunk.header }, ...hunk.lines]);
  const path = el("span", { class: "path", title: shortPath(item.path, 1000) }, shortPath(item.path));
  const head = el("figcaption", { class: "diff-head" }, path, deltas({ added, removed }),
    item.oldText == null && el("span", { class: "new-file" }, "new file"));
  const body = el("div", { class: "diff", tabindex: "0", role: "group" });
  body.setAttribute("aria-label", `Changes to ${shortPath(item.path)}`);
  body.append(...rows.slice(0, LINES_AT_FIRST).map(row));
  const box = el("figure", { class: "diff-box" }, head, body);
  if (!rows.length) body.append(el("p", { class: "quiet" }, "No changes"));
  if (rows.length > LINES_AT_FIRST) {
    const rest = rows.slice(LINES_AT_FIRST, MOST_LINES);
    box.append(more(rows.length, () => body.append(...rest.map(row))));
  }
  return box;
}

/** `+3 −1`, said in words to those who listen. */
export function deltas({ added, removed }) {
  const words = `${count(added, "line")} added, ${removed} removed`;
  return el("span", { class: "deltas" }, el("span", { class: "visually-hidden" }, words),
    el("span", { class: "added", "aria-hidden": "true" }, `+${added}`), " ",
    el("span", { class: "removed", "aria-hidden": "true" }, `−${removed}`));
}

const KIND = { "+": "added", "-": "removed", " ": "kept" };

function row(line) {
  if (line.header) return el("div", { class: "hunk" }, line.header);
  const text = visible(bounded(line.text, 2000)) + (line.cut ? " ⟨no newline⟩" : "");
  return el("div", { class: KIND[line.sign] },
    el("span", { class: "number", "aria-hidden": "true" }, String(line.old ?? "")),
    el("span", { class: "number", "aria-hidden": "true" }, String(line.new ?? "")),
    el("span", { class: "sign" }, line.sign), el("code", {}, text));
}

function more(lines, show) {
  const button = el("button", { type: "button", class: "more" }, `Show all ${count(lines, "line")}`);
  button.addEventListener("click", () => {
    const box = button.parentElement;
    show();
    button.remove();
    box.querySelector("[tabindex]")?.focus();
  });
  return button;
}

const known = new WeakMap(); // item -> its diff, which summary and body both want

function diffOf(item) {
  if (!known.has(item)) {
    const old = item.oldText == null ? null : String(item.oldText);
    known.set(item, diff(old, String(item.newText ?? "")));
  }
  return known.get(item);
}
