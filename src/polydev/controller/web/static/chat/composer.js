/**
 * Where a person writes: grows with the text, keeps the draft in this tab, sends with Enter.
 */

import { setText } from "./dom.js";

const TELL_FROM = 0.8; // of the limit: from there on, how much is left is told

export class Composer {
  /** `send(text)` resolves to true once the text was taken; `form` is that of chat.html. */
  constructor(form, { draft, send, stop }) {
    this.form = form;
    this.area = form.querySelector("textarea");
    this.submit = form.querySelector("[data-send]");
    this.stopping = form.querySelector("[data-stop]");
    this.told = form.querySelector("[data-composer-told]");
    this.limit = Number(form.dataset.limit);
    this.draft = draft;
    this.send = send;
    this.reason = "";
    this.area.value = kept(draft);
    this.area.addEventListener("input", () => this.changed());
    this.area.addEventListener("keydown", (event) => this.key(event));
    form.addEventListener("submit", (event) => this.submitted(event));
    this.stopping.addEventListener("click", () => stop(this.stopping));
    this.changed();
  }

  /** Enter sends where there is a keyboard; on touch screens it is a new line. */
  static get entersSend() {
    return !matchMedia("(pointer: coarse)").matches;
  }

  /** `reason` why nothing can be sent now, or ""; `running` shows the button that stops. */
  state({ reason, running }) {
    this.reason = reason;
    this.stopping.hidden = !running;
    this.submit.hidden = running;
    this.changed();
  }

  /** Whether nothing is being written here: what is being sent is written. */
  get idle() {
    return this.area.value === "" || this.sending || document.activeElement !== this.area;
  }

  focus() {
    if (Composer.entersSend) this.area.focus({ preventScroll: true });
  }

  changed() {
    const { length } = this.area.value;
    keep(this.draft, this.area.value);
    if (!CSS.supports("field-sizing", "content")) this.grow();
    const left = this.limit - length;
    this.submit.disabled = Boolean(this.reason) || this.area.value.trim() === "" || left < 0;
    const room = left >= 0 ? `${left.toLocaleString("en")} characters left`
      : `${(-left).toLocaleString("en")} characters too long`;
    setText(this.told, length > this.limit * TELL_FROM ? room : this.reason || this.hint);
    this.told.classList.toggle("wrong", left < 0);
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
    if (!this.submit.disabled && !event.repeat) this.form.requestSubmit();
  }

  async submitted(event) {
    event.preventDefault();
    const text = this.area.value;
    if (this.reason || this.sending || text.trim() === "" || text.length > this.limit) return;
    this.sending = true;
    this.area.readOnly = true;
    const taken = await this.send(text);
    this.area.readOnly = false;
    this.sending = false;
    if (taken) this.area.value = "";
    this.changed();
  }
}

function kept(name) {
  try {
    return sessionStorage.getItem(name) ?? "";
  } catch {
    return ""; // storage may be switched off
  }
}

function keep(name, text) {
  try {
    if (text) sessionStorage.setItem(name, text);
    else sessionStorage.removeItem(name);
  } catch {
    // the draft is then as old as the page
  }
}
