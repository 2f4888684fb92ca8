/**
 * What a turn is made of, as elements: answers, thoughts, tool calls, the plan.
 *
 * Each view is made once per entry of the transcript and updated with it; what did not change is
 * not touched. What is folded is made when it is opened.
 */

import { icon } from "../app.js";
import { changes, contents, deltas } from "./content.js";
import { copyButton, el, setText } from "./dom.js";
import { MarkdownView } from "./markdown.js";
import { count, oneLine, shortPath } from "./words.js";

const MOST_LOCATIONS = 20;

/** A message of the CLI. */
export class AnswerView {
  constructor(entry) {
    const body = el("div", { class: "markdown" });
    const copy = copyButton(() => this.entry.text, "Copy message as Markdown");
    this.element = el("div", { class: "answer" }, body, copy);
    this.markdown = new MarkdownView(body);
    this.entry = entry;
    this.shown = null;
  }

  update(entry) {
    const now = `${entry.text.length} ${entry.done}`;
    if (now === this.shown) return;
    this.shown = now;
    this.entry = entry;
    this.markdown.show(entry.text, entry.done);
    this.element.classList.toggle("growing", !entry.done);
  }
}

/** What the CLI thought, folded. */
export class ThoughtView {
  constructor() {
    this.label = el("span", {});
    this.body = el("div", { class: "folded markdown" });
    const summary = el("summary", {}, foldMark(), this.label);
    this.element = el("details", { class: "thought" }, summary, this.body);
    this.element.addEventListener("toggle", () => this.show());
    this.markdown = new MarkdownView(this.body);
  }

  update(entry) {
    this.entry = entry;
    setText(this.label, entry.done ? "Thought" : "Thinking…");
    this.show();
  }

  show() {
    const now = `${this.entry.text.length} ${this.entry.done}`;
    if (!this.element.open || now === this.shown) return;
    this.shown = now;
    this.markdown.show(this.entry.text, this.entry.done);
  }
}

const TOOL_KINDS = {
  read: { name: "Read", icon: "file" },
  edit: { name: "Edit", icon: "edit" },
  delete: { name: "Delete", icon: "trash" },
  move: { name: "Move", icon: "arrow-right" },
  search: { name: "Search", icon: "search" },
  execute: { name: "Run", icon: "terminal" },
  think: { name: "Think", icon: "dots" },
  fetch: { name: "Fetch", icon: "download" },
  switch_mode: { name: "Switch mode", icon: "refresh" },
  other: { name: "Tool", icon: "plug" },
};
const TOOL_STATES = {
  pending: "Waiting", in_progress: "Running", completed: "Done", failed: "Failed", cut: "Interrupted",
};

/** What a kind of tool is called, and its icon. */
export function toolKindOf(kind) {
  return Object.hasOwn(TOOL_KINDS, kind) ? TOOL_KINDS[kind] : TOOL_KINDS.other;
}

/** A tool that the CLI used: what, on what, with what outcome. */
export class ToolView {
  constructor() {
    this.kind = el("span", { class: "tool-kind" });
    this.title = el("span", { class: "tool-title" });
    this.told = el("span", { class: "tool-told" });
    this.state = el("span", { class: "tool-state" });
    const summary = el("summary", {}, this.kind, this.title, this.told, this.state, foldMark());
    this.body = el("div", { class: "folded" });
    this.element = el("details", { class: "tool" }, summary, this.body);
    this.element.addEventListener("toggle", () => this.show());
  }

  update(entry, turn) {
    const now = `${entry.version} ${turn.ended !== null}`;
    if (now === this.shown) return;
    this.shown = now;
    this.entry = entry;
    const kind = toolKindOf(entry.toolKind);
    this.kind.replaceChildren(icon(kind.icon), kind.name);
    setText(this.title, oneLine(entry.title, 300) || kind.name);
    const sums = changes(list(entry.content));
    this.told.replaceChildren(...(sums ? [deltas(sums)] : []));
    const state = stateOf(entry, turn);
    this.element.dataset.state = state;
    setText(this.state, TOOL_STATES[state]);
    this.stale = true;
    this.show();
  }

  show() {
    if (!this.element.open || !this.stale) return;
    this.stale = false;
    const shown = contents(list(this.entry.content));
    const empty = el("p", { class: "quiet" }, "No output");
    this.body.replaceChildren(...places(list(this.entry.locations)), ...shown,
      ...(shown.length ? [] : [empty]));
  }
}

function stateOf(entry, turn) {
  const state = Object.hasOwn(TOOL_STATES, entry.status) ? entry.status : "pending";
  const cut = turn.ended !== null && ["pending", "in_progress"].includes(state);
  return cut ? "cut" : state;
}

function places(locations) {
  if (!locations.length) return [];
  const shown = locations.slice(0, MOST_LOCATIONS).map((it) => {
    const line = Number.isInteger(it?.line) ? `:${it.line}` : "";
    return el("li", {}, el("code", {}, shortPath(it?.path) + line));
  });
  const left = locations.length - shown.length;
  if (left > 0) shown.push(el("li", { class: "quiet" }, `and ${count(left, "more location")}`));
  return [el("ul", { class: "places", "aria-label": "Files" }, ...shown)];
}

const STEP_STATES = { pending: "To do", in_progress: "In progress", completed: "Done" };

/** What the CLI means to do, ticked off as it goes. */
export class PlanView {
  constructor(entry) {
    this.title = el("p", { class: "plan-title" });
    this.list = el("ol", { class: "plan-steps" });
    this.element = el("section", { class: "plan", "aria-label": "Plan" }, this.title, this.list);
    this.title.id = `plan-${entry.key}`;
  }

  update(entry) {
    if (entry.version === this.shown) return;
    this.shown = entry.version;
    const done = entry.steps.filter((step) => step?.status === "completed").length;
    this.title.replaceChildren(icon("list"), `Plan: ${done} of ${count(entry.steps.length, "step")} done`);
    while (this.list.children.length > entry.steps.length) this.list.lastChild.remove();
    entry.steps.forEach((step, at) => this.step(at, step));
  }

  step(at, step) {
    const known = this.list.children[at];
    const item = known ?? el("li", {}, el("span", { class: "visually-hidden" }), el("span", {}));
    if (!known) this.list.append(item);
    const state = Object.hasOwn(STEP_STATES, step?.status) ? step.status : "pending";
    item.dataset.state = state;
    setText(item.firstChild, `${STEP_STATES[state]}: `);
    setText(item.lastChild, oneLine(step?.content, 500));
  }
}

/** A word of Polydev itself about the turn. */
export class NoticeView {
  constructor(entry) {
    this.passes = entry.code === "machine-wakes";
    this.words = el("div", {});
    const kind = this.passes ? "passing" : "notice";
    this.element = el("div", { class: kind }, icon(this.passes ? "sun" : "info"), this.words);
  }

  update(entry, turn) {
    const isOver = this.passes && turn.entries.at(-1) !== entry;
    setText(this.words, isOver ? "The machine resumed from hibernation" : oneLine(entry.text, 500));
  }
}

function foldMark() {
  const mark = icon("chevron-right");
  mark.classList.add("fold-mark");
  return mark;
}

function list(value) {
  return Array.isArray(value) ? value : [];
}
