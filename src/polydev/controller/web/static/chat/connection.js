/**
 * Source of a chat's events: stored ones in pages, then a stream that reconnects after the last
 * received event.
 */

import { api, Problem } from "../shared/api.js";
import { IDS_PER_TURN } from "./transcript.js";

const PAGE_SIZE = 500;
const TOLERATED_MS = 1500; // shorter interruptions are not shown
const PAUSES_MS = [500, 1000, 2000, 5000, 10000];

export class Connection {
  /**
   * `path` of the chat in the API; `onEvents(events)`; `onStateChange(isOnline)`; `onDeleted()`.
   */
  constructor({ path, onEvents, onStateChange, onDeleted }) {
    Object.assign(this, { path, onEvents, onStateChange, onDeleted });
    this.lastId = 0;
    this.failures = 0;
    this.source = null;
    this.timers = {};
    addEventListener("online", () => this.reopen());
    addEventListener("pageshow", (event) => event.persisted && this.reopen());
  }

  /** Load the stored events of the turns from `first` up to, but not including, `end`. */
  async loadStored(first, end = Infinity) {
    let after = first * IDS_PER_TURN - 1;
    for (;;) {
      const events = await api("GET", `${this.path}/events?after=${after}&limit=${PAGE_SIZE}`);
      const wanted = events.filter((event) => event.id < end * IDS_PER_TURN);
      this.onEvents(wanted);
      if (!events.length || wanted.length < events.length) return;
      after = events.at(-1).id;
      if (end === Infinity) this.lastId = after;
      else if (after >= end * IDS_PER_TURN - 1) return;
    }
  }

  /** Stream the events after the last received one. */
  stream() {
    this.close();
    const source = new EventSource(`${this.path}/stream?after=${this.lastId}`);
    this.source = source;
    source.onopen = () => this.setOnline();
    source.onmessage = ({ data }) => this.receive(data);
    for (const kind of KINDS) source.addEventListener(kind, ({ data }) => this.receive(data));
    source.onerror = () => {
      this.setOfflineSoon();
      if (source.readyState === EventSource.CLOSED) this.retryLater();
    };
  }

  close() {
    this.source?.close();
    this.source = null;
    clearTimeout(this.timers.retry);
  }

  receive(data) {
    const event = JSON.parse(data);
    if (!(event.id > this.lastId)) return;
    this.lastId = event.id;
    this.onEvents([event]);
  }

  setOnline() {
    this.failures = 0;
    clearTimeout(this.timers.offline);
    this.timers.offline = null;
    this.onStateChange(true);
  }

  setOfflineSoon() {
    this.timers.offline ??= setTimeout(() => this.onStateChange(false), TOLERATED_MS);
  }

  /** Check later why the browser gave up, and reconnect if that can help. */
  retryLater() {
    const pause = PAUSES_MS[Math.min(this.failures++, PAUSES_MS.length - 1)];
    clearTimeout(this.timers.retry);
    this.timers.retry = setTimeout(() => this.checkAndStream(), pause * (0.75 + Math.random() / 2));
  }

  async checkAndStream() {
    try {
      await api("GET", this.path); // if signed out, this leads to the sign-in page
      this.stream();
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      if (problem.status === 404) return this.onDeleted();
      if (problem.status !== 401) this.retryLater();
    }
  }

  reopen() {
    if (this.source?.readyState !== EventSource.OPEN) this.stream();
  }
}

const KINDS = [
  "user", "text", "thought", "tool", "plan", "permission", "permission_answered", "title", "notice",
  "turn_ended",
];
