/**
 * The message field: grows with its text, stores the draft in this tab, sends with Enter.
 */

import { setText } from "./render/dom.js";

const SHOW_REMAINING_FROM = 0.8; // share of the limit

export class Composer {
  /** `send(text)` resolves to true when the message is accepted; `form` is in chat/page.html. */
  constructor(form, { draft, send, stop }) {
    this.form = form;
    this.area = form.querySelector("textarea");
    this.sendButton = form.querySelector("[data-send]");
    this.stopButton = form.querySelector("[data-stop]");
    this.status = form.querySelector("[data-composer-status]");
    this.limit = Number(form.dataset.limit);
    this.draft = draft;
    this.send = send;
    this.reason = "";
    this.area.value = loadDraft(draft);
    this.area.addEventListener("input", () => this.changed());
    this.area.addEventListener("keydown", (event) => this.key(event));
    form.addEventListener("submit", (event) => this.submitted(event));
    this.stopButton.addEventListener("click", () => stop(this.stopButton));
    this.changed();
  }

  /** True where Enter sends; on touch screens it starts a new line. */
  static get entersSend() {
    return !matchMedia("(pointer: coarse)").matches;
  }

  /** Set the `reason` why nothing can be sent, or ""; `running` shows the stop button. */
  setState({ reason, running }) {
    this.reason = reason;
    this.stopButton.hidden = !running;
    this.sendButton.hidden = running;
    this.changed();
  }

  /** True while the user is not writing a message. */
  get isIdle() {
    return this.area.value === "" || this.sending || document.activeElement !== this.area;
  }

  focus() {
    if (Composer.entersSend) this.area.focus({ preventScroll: true });
  }

  changed() {
    const { length } = this.area.value;
    storeDraft(this.draft, this.area.value);
    if (!CSS.supports("field-sizing", "content")) this.grow();
    const left = this.limit - length;
    this.sendButton.disabled = Boolean(this.reason) || this.area.value.trim() === "" || left < 0;
    const remaining = left >= 0 ? `${left.toLocaleString("en")} characters left`
      : `${(-left).toLocaleString("en")} characters too long`;
    setText(this.status, length > this.limit * SHOW_REMAINING_FROM ? remaining : this.reason || this.hint);
    this.status.classList.toggle("wrong", left < 0);
  }

  get hint() {
    return Composer.entersSend ? "Press Enter to send, Shift+Enter for a new line" : "";
  }

  grow() {
    this.area.style.height = "auto";
    this.area.style.height = `${this.area.scrollHeight}px`;
  }

  key(event) {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    if (!Composer.entersSend) return;
    event.preventDefault();
    if (!this.sendButton.disabled && !event.repeat) this.form.requestSubmit();
  }

  async submitted(event) {
    event.preventDefault();
    const text = this.area.value;
    if (this.reason || this.sending || text.trim() === "" || text.length > this.limit) return;
    this.sending = true;
    this.area.readOnly = true;
    const accepted = await this.send(text);
    this.area.readOnly = false;
    this.sending = false;
    if (accepted) this.area.value = "";
    this.changed();
  }
}

function loadDraft(name) {
  try {
    return sessionStorage.getItem(name) ?? "";
  } catch {
    return ""; // storage may be disabled
  }
}

function storeDraft(name, text) {
  try {
    if (text) sessionStorage.setItem(name, text);
    else sessionStorage.removeItem(name);
  } catch {
    // without storage the draft lives as long as the page
  }
}
