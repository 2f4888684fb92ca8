// Connection to a terminal in a machine: a WebSocket that reconnects when it is lost.
//
// Programs in the terminal keep running without a connection; after reconnecting the server sends the
// screen again. A hibernated machine resumes when the user types or returns, not because a page is open.

const FIRST_PAUSE_MS = 500;
const MAX_PAUSE_MS = 15_000;
const FRAME_BYTES = 32 * 1024;

export class TerminalConnection {
  /** Callbacks: `onOpen()`, `onData(Uint8Array)`, `onLost()` before it reconnects, `onResuming()`
   *  while the machine resumes, `onHibernated()`, `onEnd(end)` with the program's end or an error. */
  constructor({ url, size, onOpen, onData, onLost, onResuming, onHibernated, onEnd }) {
    Object.assign(this, { url, size, onOpen, onData, onLost, onResuming, onHibernated, onEnd });
    this.pause = FIRST_PAUSE_MS;
    this.isHibernated = false;
    addEventListener("online", () => this.reconnectNow());
    addEventListener("focus", () => this.resume());
    document.addEventListener("visibilitychange", () => document.hidden || this.resume() || this.reconnectNow());
  }

  /** Connect; with `resume`, a hibernated machine resumes. */
  open(resume = false) {
    clearTimeout(this.timer);
    this.timer = 0;
    this.isHibernated = false;
    const [columns, rows] = this.size();
    const socket = new WebSocket(this.url(columns, rows, resume));
    socket.binaryType = "arraybuffer";
    let isOpen = false;
    socket.onopen = () => (this.pause = FIRST_PAUSE_MS);
    socket.onmessage = ({ data }) => {
      if (typeof data !== "string") {
        if (!isOpen) this.onOpen();
        isOpen = true;
        return this.onData(new Uint8Array(data));
      }
      const message = JSON.parse(data);
      if (message.notice) return this.onResuming();
      socket.onclose = null;
      this.socket = null;
      this.isHibernated = message.error?.code === "machine-asleep";
      if (this.isHibernated) this.onHibernated();
      else this.onEnd(message);
    };
    socket.onclose = () => {
      this.socket = null;
      this.onLost();
      this.timer = setTimeout(() => this.open(), this.pause);
      this.pause = Math.min(this.pause * 2, MAX_PAUSE_MS);
    };
    this.socket = socket;
  }

  /** Reconnect without waiting for the pause to end. */
  reconnectNow() {
    if (this.timer) this.open();
  }

  /** Resume the machine if it is hibernated; returns true if it was. */
  resume() {
    const { isHibernated } = this;
    if (isHibernated) this.open(true);
    return isHibernated;
  }

  get isOpen() {
    return this.socket?.readyState === WebSocket.OPEN;
  }

  /** Send input. Without a connection it is dropped: sending it later would surprise the user. */
  send(bytes) {
    for (let start = 0; this.isOpen && start < bytes.length; start += FRAME_BYTES) {
      this.socket.send(bytes.subarray(start, start + FRAME_BYTES));
    }
  }

  resize(columns, rows) {
    if (this.isOpen) this.socket.send(JSON.stringify({ resize: [columns, rows] }));
  }
}
