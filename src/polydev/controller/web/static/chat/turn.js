/**
 * One turn as elements: what was asked, what came of it, and how it ended.
 */

import { icon } from "../app.js";
import { el, setText } from "./dom.js";
import { AnswerView, NoticeView, PlanView, ThoughtView, ToolView } from "./entries.js";
import { PermissionView } from "./permission.js";
import { oneLine, visible } from "./words.js";

const VIEWS = {
  answer: AnswerView,
  thought: ThoughtView,
  tool: ToolView,
  plan: PlanView,
  permission: PermissionView,
  notice: NoticeView,
};

/** `page` says whose chat it is, and does what buttons here ask for. */
export class TurnView {
  constructor(turn, page) {
    this.turn = turn;
    this.page = page;
    this.views = new Map(); // key -> view
    this.element = el("article", { class: "turn", dataset: { turn: turn.number } });
    this.came = el("div", { class: "came" });
    this.end = el("div", { class: "turn-end" });
    this.element.append(this.came, this.end);
  }

  update() {
    const { turn } = this;
    if (turn.prompt && !this.asked) this.showPrompt(turn.prompt);
    for (const entry of turn.entries) {
      let view = this.views.get(entry.key);
      if (!view) {
        view = new VIEWS[entry.kind](entry, this.page);
        this.views.set(entry.key, view);
        this.came.append(view.element);
      }
      view.update(entry, turn);
    }
    if (turn.ended && !this.ended) this.showEnd(turn.ended);
  }

  showPrompt({ text, at }) {
    const label = el("h2", { class: "visually-hidden" }, "You");
    this.asked = el("div", { class: "asked", dir: "auto" }, visible(text));
    if (at) this.asked.title = new Date(at).toLocaleString();
    this.element.prepend(label, this.asked);
    this.came.before(el("h2", { class: "visually-hidden" }, this.page.cli));
  }

  showEnd(ended) {
    this.ended = ended;
    const made = Object.hasOwn(endings, ended.reason) ? endings[ended.reason] : endings.end_turn;
    this.end.append(...made(ended, this.page));
  }

  /** What those who listen are told of an entry that is finished. */
  static words(entry) {
    return entry.kind === "answer" ? oneLine(entry.text, 1000) : "";
  }

  /** The same of a turn's end. */
  static wordsOfEnd({ ended }, page) {
    if (ended.reason === "end_turn") return `${page.cli} has finished`;
    return told(ended.error) || `The turn ended: ${oneLine(ended.reason, 40)}`;
  }
}

const endings = {
  end_turn: () => [],
  max_tokens: (_, page) => [
    note("alert", "The answer reached the model's length limit.", goOn(page)),
  ],
  refusal: () => [note("info", "The model declined to continue.")],
  cancelled: () => [note("stop", "Stopped.")],
  interrupted: ({ error }, page) => [
    note("alert", told(error) || "The turn was interrupted. Everything up to here is saved.",
      goOn(page)),
  ],
  failed: ({ error }, page) => [trouble(error, page, again(page))],
};

function note(symbol, words, ...buttons) {
  return el("p", { class: "ended" }, icon(symbol), el("span", {}, words), ...buttons);
}

function told(error) {
  return [error?.message, error?.hint].filter(Boolean).map((it) => oneLine(it, 500)).join(". ");
}

function goOn(page) {
  const click = (event) => page.send("Continue from where you were interrupted.", event.currentTarget);
  return button("Continue", "button small", { click }, { "data-last-turn": true });
}

/** What went wrong, what to do, and the buttons that do it. */
export function trouble(error, page, ...buttons) {
  const box = el("div", { class: "problem turn-problem" }, icon("alert"));
  const words = el("div", {}, el("strong", {}, oneLine(error?.message, 500) || "The turn failed"));
  if (error?.hint) words.append(el("p", {}, oneLine(error.hint, 500)));
  words.append(el("p", { class: "actions" }, ...helps(error?.code, page), ...buttons));
  box.append(words);
  return box;
}

const CONNECT = new Set(["not-connected", "credentials-not-accepted", "login-expired"]);
const START = new Set(["machine-stopped", "machine-busy", "no-such-machine", "machine-not-ready"]);

function again(page) {
  const click = (event) => page.sendAgain(event.currentTarget);
  return button("Try again", "button small", { click }, { "data-last-turn": true });
}

function helps(code, page) {
  if (CONNECT.has(code)) {
    const words = `Reconnect ${page.cli}`;
    const click = (event) => page.connect(event.currentTarget);
    return [button(words, "button small primary", { click })];
  }
  if (START.has(code)) {
    const href = page.machine ? `/machine/${page.machine}` : "/machine";
    const look = el("a", { class: "button small", href }, "Open machine");
    const click = (event) => page.startMachine(event.currentTarget);
    return page.machine ? [button("Start machine", "button small primary", { click }), look] : [look];
  }
  return [];
}

function button(words, style, on, attributes = {}) {
  const made = el("button", { type: "button", class: style, on, ...attributes });
  setText(made, words);
  return made;
}
