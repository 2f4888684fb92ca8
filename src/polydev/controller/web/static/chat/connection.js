/**
 * The chat's events, from the first that is asked for to whatever comes: stored ones in pages, then
 * the stream. It goes on by itself after the last event that was taken, however it was cut off.
 */

import { api, Problem } from "../app.js";
import { IDS_PER_TURN } from "./transcript.js";

const PAGE = 500;
const UNNOTICED_MS = 1500; // a break that is shorter is not told
const PAUSES_MS = [500, 1000, 2000, 5000, 10000];

export class Connection {
  /**
   * `path` of the chat in the API; `take(events)` for what came; `tell(state)`: "here" or "away".
   */
  constructor({ path, take, tell, gone }) {
    Object.assign(this, { path, take, tell, gone });
    this.after = 0;
    this.failures = 0;
    this.source = null;
    this.timers = {};
    addEventListener("online", () => this.reopen());
    addEventListener("pageshow", (event) => event.persisted && this.reopen());
  }

  /** Stored events of the turns from `first` up to, but without, `end`; in pages. */
  async stored(first, end = Infinity) {
    let after = first * IDS_PER_TURN - 1;
    for (;;) {
      const events = await api("GET", `${this.path}/events?after=${after}&limit=${PAGE}`);
      const wanted = events.filter((event) => event.id < end * IDS_PER_TURN);
      this.take(wanted);
      if (!events.length || wanted.length < events.length) return;
      after = events.at(-1).id;
      if (end === Infinity) this.after = after;
      else if (after >= end * IDS_PER_TURN - 1) return;
    }
  }

  /** Listen to what comes after what was taken. */
  follow() {
    this.close();
    const source = new EventSource(`${this.path}/stream?after=${this.after}`);
    this.source = source;
    source.onopen = () => this.here();
    source.onmessage = ({ data }) => this.came(data);
    for (const kind of KINDS) source.addEventListener(kind, ({ data }) => this.came(data));
    source.onerror = () => {
      this.away();
      if (source.readyState === EventSource.CLOSED) this.again();
    };
  }

  close() {
    this.source?.close();
    this.source = null;
    clearTimeout(this.timers.again);
  }

  came(data) {
    const event = JSON.parse(data);
    if (!(event.id > this.after)) return;
    this.after = event.id;
    this.take([event]);
  }

  here() {
    this.failures = 0;
    clearTimeout(this.timers.away);
    this.timers.away = null;
    this.tell("here");
  }

  away() {
    this.timers.away ??= setTimeout(() => this.tell("away"), UNNOTICED_MS);
  }

  /** The browser gave up: find out why, and try again if that can help. */
  again() {
    const pause = PAUSES_MS[Math.min(this.failures++, PAUSES_MS.length - 1)];
    clearTimeout(this.timers.again);
    this.timers.again = setTimeout(() => this.look(), pause * (0.75 + Math.random() / 2));
  }

  async look() {
    try {
      await api("GET", this.path); // signed out: `api` leads to the door
      this.follow();
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      if (problem.status === 404) return this.gone();
      if (problem.status !== 401) this.again();
    }
  }

  reopen() {
    if (this.source?.readyState !== EventSource.OPEN) this.follow();
  }
}

const KINDS = [
  "user", "text", "thought", "tool", "plan", "permission", "permission_answered", "title", "notice",
  "turn_ended",
];
