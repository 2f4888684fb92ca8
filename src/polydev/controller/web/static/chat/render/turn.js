/**
 * View of a turn: the user's message, the entries that follow, and how it ended.
 */

import { icon } from "../../shared/ui.js";
import { el, setText } from "./dom.js";
import { AnswerView, NoticeView, PlanView, ThoughtView, ToolView } from "./entries.js";
import { PermissionView } from "./permission.js";
import { oneLine, visible } from "./text.js";

const VIEWS = {
  answer: AnswerView,
  thought: ThoughtView,
  tool: ToolView,
  plan: PlanView,
  permission: PermissionView,
  notice: NoticeView,
};

/** `page` names the CLI and handles the buttons. */
export class TurnView {
  constructor(turn, page) {
    this.turn = turn;
    this.page = page;
    this.views = new Map(); // key -> view
    this.element = el("article", { class: "turn", dataset: { turn: turn.number } });
    this.output = el("div", { class: "turn-output" });
    this.end = el("div", { class: "turn-end" });
    this.element.append(this.output, this.end);
  }

  update() {
    const { turn } = this;
    if (turn.prompt && !this.prompt) this.showPrompt(turn.prompt);
    for (const entry of turn.entries) {
      let view = this.views.get(entry.key);
      if (!view) {
        view = new VIEWS[entry.kind](entry, this.page);
        this.views.set(entry.key, view);
        this.output.append(view.element);
      }
      view.update(entry, turn);
    }
    if (turn.ended && !this.ended) this.showEnd(turn.ended);
  }

  showPrompt({ text, at }) {
    const label = el("h2", { class: "visually-hidden" }, "You");
    this.prompt = el("div", { class: "user-message", dir: "auto" }, visible(text));
    if (at) this.prompt.title = new Date(at).toLocaleString();
    this.element.prepend(label, this.prompt);
    this.output.before(el("h2", { class: "visually-hidden" }, this.page.cli));
  }

  showEnd(ended) {
    this.ended = ended;
    const ending = Object.hasOwn(endings, ended.reason) ? endings[ended.reason] : endings.end_turn;
    this.end.append(...ending(ended, this.page));
  }

  /** Text of a finished entry for screen readers. */
  static textOf(entry) {
    return entry.kind === "answer" ? oneLine(entry.text, 1000) : "";
  }

  /** Text of a turn's end for screen readers. */
  static endTextOf({ ended }, page) {
    if (ended.reason === "end_turn") return `${page.cli} has finished`;
    return errorText(ended.error) || `The turn ended: ${oneLine(ended.reason, 40)}`;
  }
}

const endings = {
  end_turn: () => [],
  max_tokens: (_, page) => [
    note("alert", "The answer reached the model's length limit.", continueButton(page)),
  ],
  refusal: () => [note("info", "The model declined to continue.")],
  cancelled: () => [note("stop", "Stopped.")],
  interrupted: ({ error }, page) => [
    note("alert", errorText(error) || "The turn was interrupted. Everything up to here is saved.",
      continueButton(page)),
  ],
  failed: ({ error }, page) => [problemBox(error, page, retryButton(page))],
};

function note(iconName, text, ...buttons) {
  return el("p", { class: "ending" }, icon(iconName), el("span", {}, text), ...buttons);
}

function errorText(error) {
  return [error?.message, error?.hint].filter(Boolean).map((it) => oneLine(it, 500)).join(". ");
}

function continueButton(page) {
  const click = (event) => page.send("Continue from where you were interrupted.", event.currentTarget);
  return button("Continue", "button small", { click }, { "data-last-turn": true });
}

/** A problem with its hint and the buttons that help. */
export function problemBox(error, page, ...buttons) {
  const box = el("div", { class: "problem turn-problem" }, icon("alert"));
  const text = el("div", {}, el("strong", {}, oneLine(error?.message, 500) || "The turn failed"));
  if (error?.hint) text.append(el("p", {}, oneLine(error.hint, 500)));
  text.append(el("p", { class: "actions" }, ...helpButtons(error?.code, page), ...buttons));
  box.append(text);
  return box;
}

const CONNECT_HELPS = new Set(["not-connected", "credentials-not-accepted", "login-expired"]);
const START_HELPS = new Set(["machine-busy", "no-such-machine", "machine-not-ready"]);

function retryButton(page) {
  const click = (event) => page.resend(event.currentTarget);
  return button("Try again", "button small", { click }, { "data-last-turn": true });
}

function helpButtons(code, page) {
  if (CONNECT_HELPS.has(code)) {
    const label = `Reconnect ${page.cli}`;
    const click = (event) => page.connect(event.currentTarget);
    return [button(label, "button small primary", { click })];
  }
  if (START_HELPS.has(code)) {
    const href = page.machine ? `/machine/${page.machine}` : "/machine";
    const link = el("a", { class: "button small", href }, "Open machine");
    const click = (event) => page.startMachine(event.currentTarget);
    return page.machine ? [button("Start machine", "button small primary", { click }), link] : [link];
  }
  return [];
}

function button(label, style, on, attributes = {}) {
  const element = el("button", { type: "button", class: style, on, ...attributes });
  setText(element, label);
  return element;
}
