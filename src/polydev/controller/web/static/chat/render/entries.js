/**
 * Views of a turn's entries: answers, thoughts, tool calls, the plan.
 *
 * Each view is created once per entry and updated with it; unchanged parts are not touched. Collapsed
 * content is rendered when it is opened.
 */

import { icon } from "../../shared/ui.js";
import { changes, contents, deltas } from "./content.js";
import { copyButton, el, setText } from "./dom.js";
import { MarkdownView } from "./markdown.js";
import { count, oneLine, shortPath } from "./text.js";

const MAX_LOCATIONS = 20;

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
    const version = `${entry.text.length} ${entry.done}`;
    if (version === this.shown) return;
    this.shown = version;
    this.entry = entry;
    this.markdown.show(entry.text, entry.done);
    this.element.classList.toggle("streaming", !entry.done);
  }
}

/** A thought of the CLI, collapsed. */
export class ThoughtView {
  constructor() {
    this.label = el("span", {});
    this.body = el("div", { class: "folded markdown" });
    const summary = el("summary", {}, foldIcon(), this.label);
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
    const version = `${this.entry.text.length} ${this.entry.done}`;
    if (!this.element.open || version === this.shown) return;
    this.shown = version;
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
  pending: "Waiting", in_progress: "Running", completed: "Done", failed: "Failed", interrupted: "Interrupted",
};

/** Name and icon of a kind of tool. */
export function toolKindOf(kind) {
  return Object.hasOwn(TOOL_KINDS, kind) ? TOOL_KINDS[kind] : TOOL_KINDS.other;
}

/** A tool call: kind, title, state, changes and content. */
export class ToolView {
  constructor() {
    this.kind = el("span", { class: "tool-kind" });
    this.title = el("span", { class: "tool-title" });
    this.changes = el("span", { class: "tool-changes" });
    this.state = el("span", { class: "tool-state" });
    const summary = el("summary", {}, this.kind, this.title, this.changes, this.state, foldIcon());
    this.body = el("div", { class: "folded" });
    this.element = el("details", { class: "tool" }, summary, this.body);
    this.element.addEventListener("toggle", () => this.show());
  }

  update(entry, turn) {
    const version = `${entry.version} ${turn.ended !== null}`;
    if (version === this.shown) return;
    this.shown = version;
    this.entry = entry;
    const kind = toolKindOf(entry.toolKind);
    this.kind.replaceChildren(icon(kind.icon), kind.name);
    setText(this.title, oneLine(entry.title, 300) || kind.name);
    const sums = changes(list(entry.content));
    this.changes.replaceChildren(...(sums ? [deltas(sums)] : []));
    const state = stateOf(entry, turn);
    this.element.dataset.state = state;
    setText(this.state, TOOL_STATES[state]);
    this.isStale = true;
    this.show();
  }

  show() {
    if (!this.element.open || !this.isStale) return;
    this.isStale = false;
    const shown = contents(list(this.entry.content));
    const empty = el("p", { class: "muted" }, "No output");
    this.body.replaceChildren(...locations(list(this.entry.locations)), ...shown,
      ...(shown.length ? [] : [empty]));
  }
}

function stateOf(entry, turn) {
  const state = Object.hasOwn(TOOL_STATES, entry.status) ? entry.status : "pending";
  const isInterrupted = turn.ended !== null && ["pending", "in_progress"].includes(state);
  return isInterrupted ? "interrupted" : state;
}

function locations(all) {
  if (!all.length) return [];
  const shown = all.slice(0, MAX_LOCATIONS).map((it) => {
    const line = Number.isInteger(it?.line) ? `:${it.line}` : "";
    return el("li", {}, el("code", {}, shortPath(it?.path) + line));
  });
  const left = all.length - shown.length;
  if (left > 0) shown.push(el("li", { class: "muted" }, `and ${count(left, "more location")}`));
  return [el("ul", { class: "locations", "aria-label": "Files" }, ...shown)];
}

const STEP_STATES = { pending: "To do", in_progress: "In progress", completed: "Done" };

/** The plan of the CLI, with the state of each step. */
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

/** A message of Polydev about the turn. */
export class NoticeView {
  constructor(entry) {
    this.isProgress = entry.code === "machine-wakes";
    this.text = el("div", {});
    const kind = this.isProgress ? "progress-note" : "notice";
    this.element = el("div", { class: kind }, icon(this.isProgress ? "sun" : "info"), this.text);
  }

  update(entry, turn) {
    const isOver = this.isProgress && turn.entries.at(-1) !== entry;
    setText(this.text, isOver ? "The machine resumed from hibernation" : oneLine(entry.text, 500));
  }
}

function foldIcon() {
  const element = icon("chevron-right");
  element.classList.add("fold-icon");
  return element;
}

function list(value) {
  return Array.isArray(value) ? value : [];
}
