// Events of the account, dispatched on the body as `polydev:<kind>`.
//
// All tabs share one stream, since a browser opens at most six connections to a plain-http server.
// The tab that holds the lock listens and broadcasts; when it closes, another tab takes over.

import { api, meta } from "./api.js";

export const KINDS = ["session", "machine", "credential", "token", "account", "chat", "reset"];

const FIRST_PAUSE_MS = 1000;
const MAX_PAUSE_MS = 30_000;

export class EventStream {
  constructor(userId) {
    this.lastId = Number(meta("events-after"));
    this.pause = FIRST_PAUSE_MS;
    const name = `polydev-events-${userId}`;
    this.channel = new BroadcastChannel(name);
    this.channel.onmessage = ({ data }) => this.onBroadcast(data);
    // Without locks (plain http on another host than localhost) every tab listens itself.
    if (!navigator.locks) return this.listen();
    this.channel.postMessage({ since: this.lastId });
    navigator.locks.request(name, () => new Promise(() => this.listen()));
  }

  /** Listen and broadcast, from the last event that the page was rendered with. */
  listen() {
    const source = new EventSource(`/api/events?after=${this.lastId}`);
    source.onopen = () => (this.pause = FIRST_PAUSE_MS);
    for (const kind of KINDS) {
      source.addEventListener(kind, (event) => {
        const message = { kind, id: Number(event.lastEventId), data: JSON.parse(event.data) };
        this.channel.postMessage(message);
        this.dispatch(message);
      });
    }
    source.onerror = () => {
      if (source.readyState !== EventSource.CLOSED) return; // the browser reconnects by itself
      api("GET", "/api/account").catch(() => {}); // if signed out, this leads to the sign-in page
      setTimeout(() => this.listen(), this.pause);
      this.pause = Math.min(this.pause * 2, MAX_PAUSE_MS);
    };
    this.isListening = true;
  }

  /** Handle another tab's message: an event, or the last id it had when it opened. */
  onBroadcast(message) {
    if (message.kind) {
      if (message.kind === "reset" || message.id > this.lastId) this.dispatch(message);
    } else if (this.isListening && message.since < this.lastId) {
      this.channel.postMessage({ kind: "reset", id: this.lastId, data: {} });
    }
  }

  dispatch({ kind, id, data }) {
    this.lastId = id;
    document.body.dispatchEvent(new CustomEvent(`polydev:${kind}`, { detail: data }));
  }
}
