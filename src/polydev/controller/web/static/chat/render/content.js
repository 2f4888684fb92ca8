/**
 * Content of a tool call or a permission request: texts, command output, diffs.
 */

import { diff } from "./diff.js";
import { copyButton, el } from "./dom.js";
import { bounded, count, shortPath, terminalText, visible } from "./text.js";

const INITIAL_LINES = 40;
const MAX_LINES = 5000;
const MAX_CHARACTERS = 200_000;

/** Elements for a list of contents; unknown kinds are left out. */
export function contents(list) {
  return list.map(content).filter(Boolean);
}

/** Number of lines that the diffs of a list add and remove; null without diffs. */
export function changes(list) {
  const items = list.filter((item) => item?.type === "diff");
  if (!items.length) return null;
  const sums = { added: 0, removed: 0 };
  for (const item of items) {
    const { added, removed } = diffOf(item);
    sums.added += added;
    sums.removed += removed;
  }
  return sums;
}

function content(item) {
  if (item?.type === "diff") return diffView(item);
  if (item?.type === "terminal") return output(terminalText(truncate(item.text)), "Output");
  if (item?.type === "text") return output(visible(truncate(item.text)), "Text");
  return null;
}

function truncate(text) {
  return bounded(String(text ?? ""), MAX_CHARACTERS);
}

/** A text, with its end hidden if it is long. */
function output(text, label) {
  if (text.trim() === "") return null;
  const lines = text.replace(/\n+$/, "").split("\n");
  const code = el("code", {}, lines.slice(0, INITIAL_LINES).join("\n"));
  const pre = el("pre", { tabindex: "0", role: "group", "aria-label": label }, code);
  const box = el("div", { class: "output" }, pre, copyButton(() => text, "Copy text"));
  if (lines.length > INITIAL_LINES) {
    box.append(showAllButton(lines.length, () => (code.textContent = lines.join("\n"))));
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
  body.append(...rows.slice(0, INITIAL_LINES).map(row));
  const box = el("figure", { class: "diff-box" }, head, body);
  if (!rows.length) body.append(el("p", { class: "muted" }, "No changes"));
  if (rows.length > INITIAL_LINES) {
    const rest = rows.slice(INITIAL_LINES, MAX_LINES);
    box.append(showAllButton(rows.length, () => body.append(...rest.map(row))));
  }
  return box;
}

/** `+3 −1`, with a text for screen readers. */
export function deltas({ added, removed }) {
  const text = `${count(added, "line")} added, ${removed} removed`;
  return el("span", { class: "deltas" }, el("span", { class: "visually-hidden" }, text),
    el("span", { class: "added", "aria-hidden": "true" }, `+${added}`), " ",
    el("span", { class: "removed", "aria-hidden": "true" }, `−${removed}`));
}

const LINE_CLASSES = { "+": "added", "-": "removed", " ": "context" };

function row(line) {
  if (line.header) return el("div", { class: "hunk" }, line.header);
  const text = visible(bounded(line.text, 2000)) + (line.hasNoNewline ? " ⟨no newline⟩" : "");
  return el("div", { class: LINE_CLASSES[line.sign] },
    el("span", { class: "number", "aria-hidden": "true" }, String(line.old ?? "")),
    el("span", { class: "number", "aria-hidden": "true" }, String(line.new ?? "")),
    el("span", { class: "sign" }, line.sign), el("code", {}, text));
}

function showAllButton(lines, show) {
  const button = el("button", { type: "button", class: "show-all" }, `Show all ${count(lines, "line")}`);
  button.addEventListener("click", () => {
    const box = button.parentElement;
    show();
    button.remove();
    box.querySelector("[tabindex]")?.focus();
  });
  return button;
}

const diffs = new WeakMap(); // item -> diff, used by summary and body

function diffOf(item) {
  if (!diffs.has(item)) {
    const old = item.oldText == null ? null : String(item.oldText);
    diffs.set(item, diff(old, String(item.newText ?? "")));
  }
  return diffs.get(item);
}
