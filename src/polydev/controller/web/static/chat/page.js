/**
 * The chat page: connects its parts and handles their buttons.
 */

import { api, Problem } from "../shared/api.js";
import { go, redirect } from "../shared/navigation.js";
import { busy, showProblem, toast } from "../shared/ui.js";
import { Composer } from "./composer.js";
import { Connection } from "./connection.js";
import { setText } from "./render/dom.js";
import { AutoScroll } from "./autoscroll.js";
import { TranscriptView } from "./transcript_view.js";
import { Transcript } from "./transcript.js";
import { problemBox } from "./render/turn.js";
import { oneLine } from "./render/text.js";

const TURNS_AT_ONCE = 12;

export class ChatPage {
  /** `element` is the section of chat/page.html; its data attributes describe the chat. */
  constructor(element) {
    this.element = element;
    const { chatId, cli, provider, turn } = element.dataset;
    Object.assign(this, { chatId, cli, provider });
    this.find = (name) => element.querySelector(`[data-${name}]`);
    this.transcript = new Transcript();
    this.firstShown = Math.max(1, Number(turn) - TURNS_AT_ONCE + 1); // number of a turn
    this.frame = this.find("transcript");
    this.autoScroll = new AutoScroll(this.frame, this.find("log"), this.find("to-end"));
    this.view = new TranscriptView({
      element: this.find("log"),
      announcements: this.find("announcements"),
      autoScroll: this.autoScroll,
      page: this,
    });
    this.connection = new Connection({
      path: this.path(),
      onEvents: (events) => this.onEvents(events),
      onStateChange: (isOnline) => (this.find("offline").hidden = isOnline),
      onDeleted: () => redirect("/chat"),
    });
    this.composer = new Composer(this.find("composer"), {
      draft: `polydev-draft-${chatId}`,
      send: (text) => this.send(text),
      stop: (button) => this.stop(button),
    });
    this.cardObserver = new IntersectionObserver((entries) => {
      this.isCardVisible = entries.at(-1).isIntersecting;
      this.update();
    }, { root: this.frame });
    this.find("to-permission").addEventListener("click", () => this.card?.focus());
    document.body.addEventListener("polydev:machine", ({ detail }) => {
      if (detail.subject !== this.machine) return;
      this.isMachineRunning = detail.status === "running";
      this.update();
    });
    this.find("earlier").addEventListener("click", (event) => this.loadEarlier(event.currentTarget));
    for (const button of element.querySelectorAll("[data-suggestion]")) {
      button.addEventListener("click", () => this.suggest(button.textContent.trim()));
    }
  }

  /** A path of this chat in the API. */
  path(of = "") {
    return `/api/chats/${this.chatId}${of && `/${of}`}`;
  }

  /** Id of the machine that the CLI runs in, or "". */
  get machine() {
    return this.element.querySelector("[data-machine]")?.dataset.machine ?? "";
  }

  async open() {
    try {
      await this.connection.loadStored(this.firstShown);
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      this.connection.setOfflineSoon();
      return this.connection.retryLater();
    } finally {
      this.onLoaded();
    }
    this.connection.stream();
  }

  onLoaded() {
    this.view.render();
    this.view.isQuiet = false;
    this.element.dataset.state = "loaded";
    this.find("earlier").hidden = this.firstShown <= 1;
    this.autoScroll.scrollToEnd();
    this.update();
    if (!this.transcript.asked) this.composer.focus();
  }

  onEvents(events) {
    const changed = new Set();
    for (const event of events) changed.add(this.transcript.apply(event));
    changed.delete(null);
    this.view.markChanged([...changed].filter((turn) => turn.number >= this.firstShown));
  }

  /** Called after changed turns are rendered. */
  onRendered() {
    if (this.element.dataset.state !== "loaded") return;
    this.update();
    this.autoScroll.onNewContent();
  }

  async loadEarlier(button) {
    const end = this.firstShown;
    const first = Math.max(1, end - TURNS_AT_ONCE);
    try {
      await busy(button, () => this.connection.loadStored(first, end));
    } catch (problem) {
      return showProblem(problem);
    }
    this.firstShown = first;
    const turns = [...this.transcript.turns.values()];
    this.view.renderBefore(turns.filter(({ number }) => number >= first && number < end));
    button.hidden = first <= 1;
  }

  /** Update everything beside the transcript. */
  update() {
    const { transcript } = this;
    const { running, asked, last } = transcript;
    const isNew = transcript.turns.size === 0 && this.firstShown <= 1;
    this.find("empty").hidden = !isNew;
    const waiting = running && asked !== null;
    const isResuming = !this.isMachineRunning && last?.entries.at(-1)?.code === "machine-wakes";
    const working = last?.entries.length ? `${this.cli} is working` : `${this.cli} is starting`;
    this.view.showProgress(running && !waiting ? (isResuming ? "Resuming the machine…" : working) : "");
    const reason = waiting ? `${this.cli} is waiting for your permission`
      : running && isResuming ? "Your message is sent when the machine has resumed"
      : running ? `${this.cli} is working. Stop it to send another message` : "";
    this.composer.setState({ reason, running });
    this.find("to-permission").hidden = !waiting || this.isCardVisible;
    if (transcript.title) this.showTitle(transcript.title);
    this.element.dataset.running = String(running);
    for (const button of this.frame.querySelectorAll("[data-last-turn]")) {
      button.hidden = running || !last || button.closest(".turn") !== this.view.views.get(last.number)?.element;
    }
    if (asked !== this.permission) this.showPermission(asked);
  }

  /** Present the open permission request; null if there is none. */
  showPermission(request) {
    this.permission = request;
    if (!request) return;
    this.view.render();
    this.view.speak(`${this.cli} asks for permission: ${oneLine(request.title, 200)}`);
    this.card = this.view.cardOf(request);
    this.cardObserver.disconnect();
    if (this.card) this.cardObserver.observe(this.card.element);
    if (this.composer.isIdle && !document.querySelector("dialog[open]")) this.card?.focus();
  }

  /** Move the focus when the element that had it is removed. */
  returnFocus() {
    this.composer.focus();
  }

  showTitle(title) {
    const text = oneLine(title, 120);
    setText(this.find("title"), text);
    document.title = `${text} · Polydev`;
  }

  // -- actions -----------------------------------------------------------------------------------

  /** Send a message; resolves to true when it is accepted. */
  async send(text, button) {
    const slot = this.find("composer-error");
    try {
      await busy(button, () => api("POST", this.path("turns"), { text }));
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      slot.replaceChildren(problemBox(problem, this));
      return false;
    }
    slot.replaceChildren();
    this.autoScroll.scrollToEnd();
    return true;
  }

  resend(button) {
    const { prompt } = this.transcript.last ?? {};
    return prompt && this.send(prompt.text, button);
  }

  stop(button) {
    return this.attempt(() => busy(button, () => api("POST", this.path("stop"))));
  }

  connect(button) {
    return this.attempt(async () => {
      const answer = await busy(button, () => api("POST", "/api/auth/start", { provider: this.provider }));
      go(`/connect/${answer.sessionId}`);
    });
  }

  startMachine(button) {
    return this.attempt(async () => {
      await busy(button, () => api("POST", `/api/vm/${this.machine}/start`));
      this.find("composer-error").replaceChildren();
      toast("Starting the machine…");
    });
  }

  suggest(text) {
    this.composer.area.value = text;
    this.composer.changed();
    this.composer.area.focus();
  }

  async attempt(work) {
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
