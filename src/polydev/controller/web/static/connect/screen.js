// The live view: noVNC over a WebSocket of the controller's, one ticket for each connection.
//
// What the machine shows is a stranger's word: noVNC draws it, and nothing of it is put into the
// page. Its clipboard is not taken; a text goes into the machine only when the person says so.

import { api, Problem } from "../app.js";
import { Typing } from "./typing.js";

const GONE = 4000;
const TOO_MANY = 4429;
const FIRST_PAUSE_MS = 1000;
const LONGEST_PAUSE_MS = 15_000;
const LOOK_EVERY_MS = 500;
const POINTER_PIXELS = 16; // of 64 by 40
const MAX_PASTED = 8192;
const MODIFIERS = [[0xffe3, "ControlLeft"], [0xffe9, "AltLeft"]];

const CONNECTING = "Connecting to the browser machine";
const OPENING = "Opening the login page";
const LOST = "Lost the connection to the browser machine. Reconnecting…";

export class Screen {
  /** `root` is the card; `session` whose browser machine it is. */
  constructor(root, session) {
    this.root = root;
    this.session = session;
    this.part = (name) => document.getElementById(`screen-${name}`);
    this.isWanted = false;
    this.rfb = null;
    this.pause = FIRST_PAUSE_MS;
    this.typing = new Typing(this.part("typing"), (keysym, code, isDown) => this.rfb?.sendKey(keysym, code, isDown));
    this.part("paste").addEventListener("click", () => this.paste());
    this.part("keys").addEventListener("click", () => this.useKeyboard());
    this.part("full").addEventListener("click", () => this.toggleFull());
    this.part("again").addEventListener("click", () => this.connect());
    this.part("box").addEventListener("keydown", (event) => this.leave(event), { capture: true });
    document.addEventListener("fullscreenchange", () => {
      if (!document.fullscreenElement) this.setFull(false);
    });
  }

  /** There is nothing to be seen yet; say what is done meanwhile. */
  prepare(words) {
    this.cover(words, "Starting", "busy");
  }

  /** Show it, and come again whenever the connection is lost. */
  show() {
    if (this.isWanted) return;
    this.isWanted = true;
    this.connect();
  }

  /** Show it no longer, and say why. */
  hide(words) {
    this.isWanted = false;
    clearTimeout(this.later);
    this.drop();
    this.setFull(false);
    this.cover(words || "The browser machine is deleted.", "Finished", "off", { isStill: true });
  }

  async connect() {
    clearTimeout(this.later);
    this.drop();
    if (!this.isWanted) return;
    this.cover(CONNECTING, "Connecting", "busy");
    const attempt = (this.attempt = Symbol("attempt"));
    try {
      const [{ default: Rfb }, { initLogging }, { ticket }] = await Promise.all([
        import("../vendor/novnc/core/rfb.js"),
        import("../vendor/novnc/core/util/logging.js"),
        api("POST", `/api/auth/session/${this.session}/view`),
      ]);
      initLogging("none"); // how a connection ends is told on the page
      if (attempt === this.attempt && this.isWanted) this.open(Rfb, ticket);
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      if (attempt === this.attempt) this.tryLater(`${problem.message} ${problem.hint}`.trim());
    }
  }

  open(Rfb, ticket) {
    const there = new URL(`/api/auth/session/${this.session}/view`, location.href);
    there.protocol = there.protocol.replace("http", "ws");
    there.searchParams.set("ticket", ticket);
    const socket = new WebSocket(there, ["binary"]);
    socket.addEventListener("close", ({ code, reason }) => {
      if (this.socket === socket) this.closed(code, reason);
    });
    this.socket = socket;
    const rfb = (this.rfb = new Rfb(this.part("view"), socket, { shared: true }));
    rfb.scaleViewport = true;
    rfb.background = "transparent";
    rfb.showDotCursor = true;
    rfb.addEventListener("connect", () => this.connected());
    rfb.addEventListener("securityfailure", () => socket.close());
    rfb.addEventListener("credentialsrequired", () => socket.close());
    const canvas = this.part("view").querySelector("canvas");
    canvas.setAttribute("role", "application");
    canvas.setAttribute("aria-label", "The browser machine's screen");
    canvas.setAttribute("aria-describedby", "screen-help");
  }

  connected() {
    this.pause = FIRST_PAUSE_MS;
    this.cover(OPENING, "Opening", "busy");
    this.uncover();
  }

  /** Show the screen as soon as there is something on it: a browser takes a while to open. */
  uncover() {
    clearTimeout(this.later);
    if (!this.rfb) return;
    if (isEmpty(this.part("view").querySelector("canvas"))) {
      this.later = setTimeout(() => this.uncover(), LOOK_EVERY_MS);
      return;
    }
    this.part("cover").hidden = true;
    this.badge("Live", "ok");
    this.part("paste").disabled = this.part("keys").disabled = false;
  }

  closed(code, reason) {
    this.drop();
    if (!this.isWanted) return;
    if (code === TOO_MANY) this.cover(reason, "Not shown", "attention", { isStill: true, again: true });
    else this.tryLater(code === GONE ? reason : LOST);
  }

  tryLater(words) {
    if (!this.isWanted) return;
    this.cover(words, "Interrupted", "attention", { again: true });
    this.later = setTimeout(() => this.connect(), this.pause);
    this.pause = Math.min(2 * this.pause, LONGEST_PAUSE_MS);
  }

  drop() {
    const { rfb, socket } = this;
    this.rfb = this.socket = null;
    this.part("paste").disabled = this.part("keys").disabled = true;
    // Closed before it is open, a browser would complain of it in its console.
    if (socket?.readyState === WebSocket.CONNECTING) socket.addEventListener("open", () => rfb?.disconnect());
    else if (socket?.readyState === WebSocket.OPEN) rfb?.disconnect();
    this.part("view").replaceChildren();
  }

  cover(words, badge, kind, { isStill = false, again = false } = {}) {
    this.part("words").textContent = words;
    this.part("cover").hidden = false;
    this.part("cover").classList.toggle("still", isStill);
    this.part("again").hidden = !again;
    this.badge(badge, kind);
  }

  badge(words, kind) {
    const badge = this.part("state");
    if (badge.textContent !== words) badge.textContent = words;
    badge.className = `badge ${kind}`;
  }

  // -- keyboard and clipboard ----------------------------------------------------------------------

  /** On a phone the on-screen keyboard comes up; elsewhere the keys go to the machine at once. */
  useKeyboard() {
    if (matchMedia("(pointer: coarse)").matches) this.typing.begin();
    else this.rfb?.focus();
  }

  /** Ctrl + Alt + X gives the keyboard back to the page. */
  leave(event) {
    if (!event.ctrlKey || !event.altKey || event.code !== "KeyX") return;
    event.preventDefault();
    event.stopPropagation();
    for (const [keysym, code] of MODIFIERS) this.rfb?.sendKey(keysym, code, false);
    this.rfb?.blur();
    this.part("keys").focus();
  }

  async paste() {
    let text = "";
    try {
      text = await navigator.clipboard.readText();
    } catch {
      text = ""; // the browser does not let the page read it: the person pastes it into a field
    }
    text ||= await askForText();
    // Typed, not put into its clipboard: it comes whole wherever the cursor is, and stays nowhere.
    this.typing.write(text.slice(0, MAX_PASTED).replace(/[\r\n]/g, ""));
    this.rfb?.focus();
  }

  // -- size ----------------------------------------------------------------------------------------

  async toggleFull() {
    const isFull = !this.root.classList.contains("full");
    this.setFull(isFull);
    try {
      if (isFull) await this.root.requestFullscreen();
      else if (document.fullscreenElement) await document.exitFullscreen();
    } catch {
      // Some phones cannot: then it fills the window.
    }
  }

  setFull(isFull) {
    this.root.classList.toggle("full", isFull);
    this.part("full").setAttribute("aria-pressed", String(isFull));
    this.part("full").querySelector("span").textContent = isFull ? "Exit full screen" : "Full screen";
  }
}

/** Whether a canvas is of one colour all over, but for a mouse pointer. */
function isEmpty(canvas) {
  if (!canvas?.width || !canvas.height) return true;
  const small = new OffscreenCanvas(64, 40).getContext("2d", { willReadFrequently: true });
  small.drawImage(canvas, 0, 0, 64, 40);
  const pixels = new Uint32Array(small.getImageData(0, 0, 64, 40).data.buffer);
  return pixels.filter((pixel) => pixel !== pixels[0]).length < POINTER_PIXELS;
}

function askForText() {
  const dialog = document.getElementById("paste-dialog");
  const text = document.getElementById("paste-into");
  text.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  text.focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      resolve(dialog.returnValue === "yes" ? text.value : "");
      text.value = "";
    }, { once: true });
  });
}
