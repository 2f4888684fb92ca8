/**
 * A request for permission: what the CLI wants to do, and its own choices.
 *
 * The card takes the focus itself, never one of its buttons, so that a key that was meant for
 * something else decides nothing. Numbers choose, once the card has been there long enough to be
 * read.
 */

import { api, icon } from "../app.js";
import { contents } from "./content.js";
import { el, setText } from "./dom.js";
import { toolKindOf } from "./entries.js";
import { oneLine } from "./words.js";

const UNREAD_MS = 700;
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
    this.sent = null;
    this.state = el("p", { class: "permission-state", role: "status" });
    this.choices = el("div", { class: "choices" });
    const title = el("p", { class: "permission-title" }, icon("shield"));
    title.append(el("span", {}, `${page.cli} asks for permission`));
    title.id = `permission-${entry.key}`;
    this.what = el("p", { class: "permission-what" });
    this.shows = el("div", { class: "permission-shows" });
    const labels = { role: "group", tabindex: "-1", "aria-labelledby": title.id };
    this.element = el("section", { class: "permission", ...labels },
      title, this.what, this.shows, this.choices, this.state);
    this.element.addEventListener("keydown", (event) => this.key(event));
    this.appeared = performance.now();
  }

  update(entry, turn) {
    const tool = turn.tools.get(entry.toolCallId);
    const now = `${entry.open} ${entry.chosen} ${tool?.version}`;
    if (now === this.shown) return;
    this.shown = now;
    this.entry = entry;
    const kind = toolKindOf(entry.toolKind ?? tool?.toolKind);
    const words = oneLine(entry.title || tool?.title, 500) || "Use a tool";
    this.what.replaceChildren(icon(kind.icon), el("code", {}, words));
    const content = entry.content.length ? entry.content : (tool?.content ?? []);
    if (entry.open) this.shows.replaceChildren(...contents(content));
    else this.shows.replaceChildren();
    this.element.dataset.state = entry.open ? "open" : "answered";
    if (!this.sent) this.showChoices();
    if (!entry.open) this.showAnswer();
  }

  showChoices() {
    const buttons = this.entry.open ? this.sorted().map((option, at) => this.button(option, at)) : [];
    this.choices.replaceChildren(...buttons);
  }

  /** The CLI's choices, allowing ones first; those of one kind stay as they came. */
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

  key(event) {
    const at = Number(event.key) - 1;
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    if (!this.entry.open || performance.now() - this.appeared < UNREAD_MS) return;
    const button = this.choices.children[at];
    if (Number.isInteger(at) && button && !button.disabled) button.click();
  }

  async choose(option) {
    if (this.sent || !this.entry.open) return;
    this.sent = option;
    this.disable(true);
    setText(this.state, `Sending: ${oneLine(option.name, 80)}…`);
    const path = `permissions/${encodeURIComponent(this.entry.requestId)}`;
    const problem = await api("POST", this.page.path(path), { optionId: option.optionId })
      .then(() => null, (error) => error);
    this.sent = null;
    if (!this.entry.open) return this.showAnswer();
    if (!problem) return setText(this.state, `Sent: ${oneLine(option.name, 80)}`);
    this.disable(false);
    setText(this.state, [problem.message, problem.hint].filter(Boolean).join(" "));
  }

  disable(disabled) {
    for (const button of this.choices.children) button.disabled = disabled;
  }

  showAnswer() {
    this.choices.replaceChildren();
    const chosen = this.entry.options.find((option) => option.optionId === this.entry.chosen);
    const kind = String(chosen?.optionKind ?? "");
    this.element.dataset.answer = kind.startsWith("allow") ? "allowed" : "refused";
    const nothing = "Not answered: the turn ended";
    setText(this.state, chosen ? `You chose: ${oneLine(chosen.name, 80)}` : nothing);
    if (this.element.contains(document.activeElement)) this.page.returnFocus();
  }

  /** Bring it to whoever uses the keyboard. */
  focus() {
    this.appeared = performance.now();
    this.element.focus({ preventScroll: true });
    this.element.scrollIntoView({ block: "nearest" });
  }
}
