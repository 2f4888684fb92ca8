/**
 * The page of one chat: puts its parts together, and does what their buttons ask for.
 */

import { api, busy, Problem, say, showProblem } from "../app.js";
import { Composer } from "./composer.js";
import { Connection } from "./connection.js";
import { setText } from "./dom.js";
import { Follow } from "./follow.js";
import { Log } from "./log.js";
import { Transcript } from "./transcript.js";
import { trouble } from "./turn.js";
import { oneLine } from "./words.js";

const TURNS_AT_ONCE = 12;

export class ChatPage {
  /** `element` is the section of chat.html; what it says about the chat is in its data. */
  constructor(element) {
    this.element = element;
    const { chatId, cli, provider, turn } = element.dataset;
    Object.assign(this, { chatId, cli, provider });
    this.find = (name) => element.querySelector(`[data-${name}]`);
    this.transcript = new Transcript();
    this.first = Math.max(1, Number(turn) - TURNS_AT_ONCE + 1); // the first turn that is shown
    this.frame = this.find("transcript");
    this.follow = new Follow(this.frame, this.find("log"), this.find("to-end"));
    const spoken = this.find("spoken");
    this.log = new Log({ element: this.find("log"), spoken, follow: this.follow, page: this });
    this.connection = new Connection({
      path: this.path(),
      take: (events) => this.take(events),
      tell: (state) => this.connected(state),
      gone: () => location.assign("/chat"),
    });
    this.composer = new Composer(this.find("composer"), {
      draft: `polydev-draft-${chatId}`,
      send: (text) => this.send(text),
      stop: (button) => this.stop(button),
    });
    this.seen = new IntersectionObserver((sights) => {
      this.isCardSeen = sights.at(-1).isIntersecting;
      this.tellState();
    }, { root: this.frame });
    this.find("to-permission").addEventListener("click", () => this.card?.focus());
    document.body.addEventListener("polydev:machine", ({ detail }) => {
      if (detail.subject !== this.machine) return;
      this.isAwake = detail.status === "running";
      this.tellState();
    });
    this.find("earlier").addEventListener("click", (event) => this.earlier(event.currentTarget));
    for (const button of element.querySelectorAll("[data-suggestion]")) {
      button.addEventListener("click", () => this.suggest(button.textContent.trim()));
    }
  }

  /** A path of this chat in the API. */
  path(of = "") {
    return `/api/chats/${this.chatId}${of && `/${of}`}`;
  }

  /** The machine that the chat's CLI runs in, as the page knows it now. */
  get machine() {
    return this.element.querySelector("[data-machine]")?.dataset.machine ?? "";
  }

  async open() {
    try {
      await this.connection.stored(this.first);
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      this.connection.away();
      return this.connection.again();
    } finally {
      this.loaded();
    }
    this.connection.follow();
  }

  loaded() {
    this.log.draw();
    this.log.quiet = false;
    this.element.dataset.state = "loaded";
    this.find("earlier").hidden = this.first <= 1;
    this.follow.toEnd();
    this.tellState();
    if (!this.transcript.asked) this.composer.focus();
  }

  take(events) {
    const changed = new Set();
    for (const event of events) changed.add(this.transcript.apply(event));
    changed.delete(null);
    this.log.changed([...changed].filter((turn) => turn.number >= this.first));
  }

  /** What came is on the page now. */
  drawn() {
    if (this.element.dataset.state !== "loaded") return;
    this.tellState();
    this.follow.told();
  }

  async earlier(button) {
    const end = this.first;
    const first = Math.max(1, end - TURNS_AT_ONCE);
    try {
      await busy(button, () => this.connection.stored(first, end));
    } catch (problem) {
      return showProblem(problem);
    }
    this.first = first;
    const turns = [...this.transcript.turns.values()];
    this.log.drawBefore(turns.filter(({ number }) => number >= first && number < end));
    button.hidden = first <= 1;
  }

  /** Everything beside the transcript that follows from it. */
  tellState() {
    const { transcript } = this;
    const { running, asked, last } = transcript;
    const isNew = transcript.turns.size === 0 && this.first <= 1;
    this.find("empty").hidden = !isNew;
    const waiting = running && asked !== null;
    const wakes = !this.isAwake && last?.entries.at(-1)?.code === "machine-wakes";
    const working = last?.entries.length ? `${this.cli} is working` : `${this.cli} is starting`;
    this.log.busy(running && !waiting ? (wakes ? "Resuming the machine…" : working) : "");
    const reason = waiting ? `${this.cli} is waiting for your permission`
      : running && wakes ? "Your message is sent when the machine has resumed"
      : running ? `${this.cli} is working. Stop it to send another message` : "";
    this.composer.state({ reason, running });
    this.find("to-permission").hidden = !waiting || this.isCardSeen;
    if (transcript.title) this.entitle(transcript.title);
    this.element.dataset.running = String(running);
    for (const button of this.frame.querySelectorAll("[data-last-turn]")) {
      button.hidden = running || !last || button.closest(".turn") !== this.log.views.get(last.number)?.element;
    }
    if (asked !== this.askedFor) this.ask(asked);
  }

  /** A permission is waited for, or no longer. */
  ask(asked) {
    this.askedFor = asked;
    if (!asked) return;
    this.log.draw();
    this.log.say(`${this.cli} asks for permission: ${oneLine(asked.title, 200)}`);
    this.card = this.log.asking(asked);
    this.seen.disconnect();
    if (this.card) this.seen.observe(this.card.element);
    if (this.composer.idle && !document.querySelector("dialog[open]")) this.card?.focus();
  }

  /** Where the focus goes when what had it is gone. */
  returnFocus() {
    this.composer.focus();
  }

  entitle(title) {
    const words = oneLine(title, 120);
    setText(this.find("title"), words);
    document.title = `${words} · Polydev`;
  }

  connected(state) {
    this.find("away").hidden = state === "here";
  }

  // -- what people do ----------------------------------------------------------------------------

  /** Ask the CLI. True once the API took it. */
  async send(text, button) {
    const place = this.find("trouble");
    try {
      await busy(button, () => api("POST", this.path("turns"), { text }));
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      place.replaceChildren(trouble(problem, this));
      return false;
    }
    place.replaceChildren();
    this.follow.toEnd();
    return true;
  }

  sendAgain(button) {
    const { prompt } = this.transcript.last ?? {};
    return prompt && this.send(prompt.text, button);
  }

  stop(button) {
    return this.tried(() => busy(button, () => api("POST", this.path("stop"))));
  }

  connect(button) {
    return this.tried(async () => {
      const answer = await busy(button, () => api("POST", "/api/auth/start", { provider: this.provider }));
      location.assign(`/connect/${answer.sessionId}`);
    });
  }

  startMachine(button) {
    return this.tried(async () => {
      await busy(button, () => api("POST", `/api/vm/${this.machine}/start`));
      this.find("trouble").replaceChildren();
      say("Starting the machine…");
    });
  }

  suggest(text) {
    this.composer.area.value = text;
    this.composer.changed();
    this.composer.area.focus();
  }

  async tried(work) {
    try {
      await work();
      return true;
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      showProblem(problem);
      return false;
    }
  }
}

const section = document.querySelector("[data-chat-id]");
if (section) await new ChatPage(section).open();
