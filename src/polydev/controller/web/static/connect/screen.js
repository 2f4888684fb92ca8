// The live view: noVNC over a WebSocket of the controller, with a ticket for each connection.
//
// The machine is untrusted: noVNC draws its screen, and nothing of it enters the page. Its clipboard
// is ignored; text goes into the machine only when the user pastes it.

import { api, Problem } from "../shared/api.js";
import { OnScreenKeyboard } from "./keyboard.js";

const CLOSED_WITH_REASON = 4000; // WebSocket close codes of the controller
const TOO_MANY_VIEWS = 4429;
const FIRST_PAUSE_MS = 1000;
const MAX_PAUSE_MS = 15_000;
const CHECK_EVERY_MS = 500;
const POINTER_PIXELS = 16; // of 64 by 40
const MAX_PASTED = 8192;
const MODIFIERS = [[0xffe3, "ControlLeft"], [0xffe9, "AltLeft"]];

const CONNECTING = "Connecting to the browser machine";
const OPENING = "Opening the login page";
const LOST = "Lost the connection to the browser machine. Reconnecting…";

export class Screen {
  /** `root` is the card; `session` the id of the connect session. */
  constructor(root, session) {
    this.root = root;
    this.session = session;
    this.part = (name) => document.getElementById(`screen-${name}`);
    this.isWanted = false;
    this.rfb = null;
    this.pause = FIRST_PAUSE_MS;
    this.keyboard = new OnScreenKeyboard(this.part("typing"), (keysym, code, isDown) => this.rfb?.sendKey(keysym, code, isDown));
    this.part("paste").addEventListener("click", () => this.paste());
    this.part("keys").addEventListener("click", () => this.useKeyboard());
    this.part("full").addEventListener("click", () => this.toggleFull());
    this.part("retry").addEventListener("click", () => this.connect());
    this.part("box").addEventListener("keydown", (event) => this.leave(event), { capture: true });
    document.addEventListener("fullscreenchange", () => {
      if (!document.fullscreenElement) this.setFull(false);
    });
  }

  /** Show progress until there is a screen. */
  prepare(text) {
    this.cover(text, "Starting", "busy");
  }

  /** Show the screen, and reconnect when the connection is lost. */
  show() {
    if (this.isWanted) return;
    this.isWanted = true;
    this.connect();
  }

  /** Hide the screen, with a reason. */
  hide(text) {
    this.isWanted = false;
    clearTimeout(this.timer);
    this.drop();
    this.setFull(false);
    this.cover(text || "The browser machine is deleted.", "Finished", "off", { isStill: true });
  }

  async connect() {
    clearTimeout(this.timer);
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
      initLogging("none"); // the page shows how connections end
      if (attempt === this.attempt && this.isWanted) this.open(Rfb, ticket);
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      if (attempt === this.attempt) this.retryLater(`${problem.message} ${problem.hint}`.trim());
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

  /** Uncover the screen once something is on it: a browser takes a while to open. */
  uncover() {
    clearTimeout(this.timer);
    if (!this.rfb) return;
    if (isEmpty(this.part("view").querySelector("canvas"))) {
      this.timer = setTimeout(() => this.uncover(), CHECK_EVERY_MS);
      return;
    }
    this.part("cover").hidden = true;
    this.badge("Live", "ok");
    this.part("paste").disabled = this.part("keys").disabled = false;
  }

  closed(code, reason) {
    this.drop();
    if (!this.isWanted) return;
    if (code === TOO_MANY_VIEWS) this.cover(reason, "Not shown", "attention", { isStill: true, retry: true });
    else this.retryLater(code === CLOSED_WITH_REASON ? reason : LOST);
  }

  retryLater(text) {
    if (!this.isWanted) return;
    this.cover(text, "Interrupted", "attention", { retry: true });
    this.timer = setTimeout(() => this.connect(), this.pause);
    this.pause = Math.min(2 * this.pause, MAX_PAUSE_MS);
  }

  drop() {
    const { rfb, socket } = this;
    this.rfb = this.socket = null;
    this.part("paste").disabled = this.part("keys").disabled = true;
    // Closing a socket before it is open logs an error in the browser's console.
    if (socket?.readyState === WebSocket.CONNECTING) socket.addEventListener("open", () => rfb?.disconnect());
    else if (socket?.readyState === WebSocket.OPEN) rfb?.disconnect();
    this.part("view").replaceChildren();
  }

  cover(text, badge, kind, { isStill = false, retry = false } = {}) {
    this.part("message").textContent = text;
    this.part("cover").hidden = false;
    this.part("cover").classList.toggle("still", isStill);
    this.part("retry").hidden = !retry;
    this.badge(badge, kind);
  }

  badge(text, kind) {
    const badge = this.part("state");
    if (badge.textContent !== text) badge.textContent = text;
    badge.className = `badge ${kind}`;
  }

  // -- keyboard and clipboard ----------------------------------------------------------------------

  /** Open the on-screen keyboard on phones; elsewhere give the keys to the machine. */
  useKeyboard() {
    if (matchMedia("(pointer: coarse)").matches) this.keyboard.begin();
    else this.rfb?.focus();
  }

  /** Return the keyboard to the page on Ctrl + Alt + X. */
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
      text = ""; // no access to the clipboard: the user pastes into a field
    }
    text ||= await askForText();
    // Typed as keys, so that it leaves no copy in the machine's clipboard.
    this.keyboard.write(text.slice(0, MAX_PASTED).replace(/[\r\n]/g, ""));
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
      // Some phones have no full screen: it fills the window instead.
    }
  }

  setFull(isFull) {
    this.root.classList.toggle("full", isFull);
    this.part("full").setAttribute("aria-pressed", String(isFull));
    this.part("full").querySelector("span").textContent = isFull ? "Exit full screen" : "Full screen";
  }
}

/** True if a canvas has one color except for a mouse pointer. */
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
