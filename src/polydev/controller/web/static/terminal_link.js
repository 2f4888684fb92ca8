// The way to a terminal in a machine: a WebSocket that is opened again when it is cut. What runs
// there goes on meanwhile, and is told again from its start by the server. A machine that has fallen
// asleep is woken by a person who types or comes back, never by a page that is merely open.

const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 15_000;
const FRAME_BYTES = 32 * 1024;

export class Link {
  /** `opened()`, `bytes(Uint8Array)`, `cut(ms)`: it is tried again after so long, `waits(words)`: the
   *  machine wakes up, `asleep()`: it sleeps until somebody is here, `ended(end)`: the program's own
   *  end, or why there is none (an ExecEnd of hostapi.py). */
  constructor({ url, size, opened, bytes, cut, waits, asleep, ended }) {
    Object.assign(this, { url, size, opened, bytes, cut, waits, asleep, ended });
    this.pause = FIRST_PAUSE_MS;
    this.sleeps = false;
    addEventListener("online", () => this.hurry());
    addEventListener("focus", () => this.wake());
    document.addEventListener("visibilitychange", () => document.hidden || this.wake() || this.hurry());
  }

  /** `wake`: somebody is here, and wants the machine to run. */
  open(wake = false) {
    clearTimeout(this.timer);
    this.timer = 0;
    this.sleeps = false;
    const [columns, rows] = this.size();
    const socket = new WebSocket(this.url(columns, rows, wake));
    socket.binaryType = "arraybuffer";
    let isTold = false;
    socket.onopen = () => (this.pause = FIRST_PAUSE_MS);
    socket.onmessage = ({ data }) => {
      if (typeof data !== "string") {
        if (!isTold) this.opened();
        isTold = true;
        return this.bytes(new Uint8Array(data));
      }
      const told = JSON.parse(data);
      if (told.notice) return this.waits(told.notice);
      socket.onclose = null;
      this.socket = null;
      this.sleeps = told.error?.code === "machine-asleep";
      if (this.sleeps) this.asleep();
      else this.ended(told);
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

  /** Somebody is here: wake a machine that sleeps. Whether that was needed. */
  wake() {
    const sleeps = this.sleeps;
    if (sleeps) this.open(true);
    return sleeps;
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
