// The way to a terminal in a machine: a WebSocket that is opened again when it is cut. What runs
// there goes on meanwhile, and is told again from its start by the server.

const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 15_000;
const FRAME_BYTES = 32 * 1024;

export class Link {
  /** `opened()`, `bytes(Uint8Array)`, `cut(ms)`: it is tried again after so long, `ended(end)`: the
   *  program's own end, or why there is none (an ExecEnd of hostapi.py). */
  constructor({ url, size, opened, bytes, cut, ended }) {
    Object.assign(this, { url, size, opened, bytes, cut, ended });
    this.pause = FIRST_PAUSE_MS;
    addEventListener("online", () => this.hurry());
    document.addEventListener("visibilitychange", () => document.hidden || this.hurry());
  }

  open() {
    clearTimeout(this.timer);
    this.timer = 0;
    const [columns, rows] = this.size();
    const socket = new WebSocket(this.url(columns, rows));
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      this.pause = FIRST_PAUSE_MS;
      this.opened();
    };
    socket.onmessage = ({ data }) => {
      if (typeof data !== "string") return this.bytes(new Uint8Array(data));
      socket.onclose = null;
      this.socket = null;
      this.ended(JSON.parse(data));
    };
    socket.onclose = () => {
      this.socket = null;
      this.cut(this.pause);
      this.timer = setTimeout(() => this.open(), this.pause);
      this.pause = Math.min(this.pause * 2, LONGEST_PAUSE_MS);
    };
    this.socket = socket;
  }

  /** Somebody looks again, or is online again: do not wait for the pause to end. */
  hurry() {
    if (this.timer) this.open();
  }

  get isOpen() {
    return this.socket?.readyState === WebSocket.OPEN;
  }

  /** What is typed while the connection is away is lost, and not sent later to somebody's surprise. */
  send(bytes) {
    for (let start = 0; this.isOpen && start < bytes.length; start += FRAME_BYTES) {
      this.socket.send(bytes.subarray(start, start + FRAME_BYTES));
    }
  }

  resize(columns, rows) {
    if (this.isOpen) this.socket.send(JSON.stringify({ resize: [columns, rows] }));
  }
}
