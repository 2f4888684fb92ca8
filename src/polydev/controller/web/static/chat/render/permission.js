/**
 * Card of a permission request: what the CLI wants to do, and the options.
 *
 * The card takes the focus itself, not one of its buttons, so that a key press meant for something
 * else decides nothing. Number keys choose an option once the user has had time to read.
 */

import { api } from "../../shared/api.js";
import { icon } from "../../shared/ui.js";
import { contents } from "./content.js";
import { el, setText } from "./dom.js";
import { toolKindOf } from "./entries.js";
import { oneLine } from "./text.js";

const MIN_READ_MS = 700;
const KINDS = {
  allow_once: { class: "button primary", order: 0 },
  allow_always: { class: "button", order: 1 },
  reject_once: { class: "button", order: 2 },
  reject_always: { class: "button quiet danger", order: 3 },
};

export class PermissionView {
  constructor(entry, page) {
    this.page = page;
    this.entry = entry;
    this.sending = null;
    this.state = el("p", { class: "permission-state", role: "status" });
    this.choices = el("div", { class: "choices" });
    const title = el("p", { class: "permission-title" }, icon("shield"));
    title.append(el("span", {}, `${page.cli} asks for permission`));
    title.id = `permission-${entry.key}`;
    this.action = el("p", { class: "permission-action" });
    this.content = el("div", { class: "permission-content" });
    const labels = { role: "group", tabindex: "-1", "aria-labelledby": title.id };
    this.element = el("section", { class: "permission", ...labels },
      title, this.action, this.content, this.choices, this.state);
    this.element.addEventListener("keydown", (event) => this.onKey(event));
    this.shownAt = performance.now();
  }

  update(entry, turn) {
    const tool = turn.tools.get(entry.toolCallId);
    const version = `${entry.open} ${entry.chosen} ${tool?.version}`;
    if (version === this.shown) return;
    this.shown = version;
    this.entry = entry;
    const kind = toolKindOf(entry.toolKind ?? tool?.toolKind);
    const title = oneLine(entry.title || tool?.title, 500) || "Use a tool";
    this.action.replaceChildren(icon(kind.icon), el("code", {}, title));
    const content = entry.content.length ? entry.content : (tool?.content ?? []);
    if (entry.open) this.content.replaceChildren(...contents(content));
    else this.content.replaceChildren();
    this.element.dataset.state = entry.open ? "open" : "answered";
    if (!this.sending) this.showChoices();
    if (!entry.open) this.showAnswer();
  }

  showChoices() {
    const buttons = this.entry.open ? this.sorted().map((option, at) => this.button(option, at)) : [];
    this.choices.replaceChildren(...buttons);
  }

  /** The options, allowing ones first; options of one kind keep their order. */
  sorted() {
    const order = (option) => KINDS[option.optionKind]?.order ?? 4;
    return this.entry.options.filter((it) => it?.optionId).slice(0, 9)
      .sort((one, other) => order(one) - order(other));
  }

  button(option, at) {
    const style = Object.hasOwn(KINDS, option.optionKind) ? KINDS[option.optionKind].class : "button";
    const number = el("kbd", { "aria-hidden": "true" }, String(at + 1));
    const name = oneLine(option.name, 80) || oneLine(option.optionId, 80);
    const attributes = { type: "button", class: style, "aria-keyshortcuts": String(at + 1) };
    const button = el("button", attributes, number, el("span", {}, name));
    button.addEventListener("click", () => this.choose(option));
    return button;
  }

  onKey(event) {
    const at = Number(event.key) - 1;
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    if (!this.entry.open || performance.now() - this.shownAt < MIN_READ_MS) return;
    const button = this.choices.children[at];
    if (Number.isInteger(at) && button && !button.disabled) button.click();
  }

  async choose(option) {
    if (this.sending || !this.entry.open) return;
    this.sending = option;
    this.setDisabled(true);
    setText(this.state, `Sending: ${oneLine(option.name, 80)}…`);
    const path = `permissions/${encodeURIComponent(this.entry.requestId)}`;
    const problem = await api("POST", this.page.path(path), { optionId: option.optionId })
      .then(() => null, (error) => error);
    this.sending = null;
    if (!this.entry.open) return this.showAnswer();
    if (!problem) return setText(this.state, `Sent: ${oneLine(option.name, 80)}`);
    this.setDisabled(false);
    setText(this.state, [problem.message, problem.hint].filter(Boolean).join(" "));
  }

  setDisabled(disabled) {
    for (const button of this.choices.children) button.disabled = disabled;
  }

  showAnswer() {
    this.choices.replaceChildren();
    const chosen = this.entry.options.find((option) => option.optionId === this.entry.chosen);
    const kind = String(chosen?.optionKind ?? "");
    this.element.dataset.answer = kind.startsWith("allow") ? "allowed" : "refused";
    const unanswered = "Not answered: the turn ended";
    setText(this.state, chosen ? `You chose: ${oneLine(chosen.name, 80)}` : unanswered);
    if (this.element.contains(document.activeElement)) this.page.returnFocus();
  }

  /** Move the focus to the card and scroll it into view. */
  focus() {
    this.shownAt = performance.now();
    this.element.focus({ preventScroll: true });
    this.element.scrollIntoView({ block: "nearest" });
  }
}
