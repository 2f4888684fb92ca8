// The terminal page: xterm.js, the connection to the machine, and keys that phones lack.

import { copy, hideProblem, showProblem } from "../shared/ui.js";
import { TerminalConnection } from "./connection.js";
import { FitAddon } from "../vendor/xterm/addon-fit.mjs";
import { Terminal } from "../vendor/xterm/xterm.mjs";
import { allowStyles } from "./xterm_styles.js";

const SCROLLBACK_LINES = 10_000;
const KEYS = { esc: "\x1b", tab: "\t", up: "\x1b[A", down: "\x1b[B", right: "\x1b[C", left: "\x1b[D" };

const page = document.querySelector("[data-terminal]");
const find = (selector) => page.querySelector(selector);
const state = find("[data-state]");
const reopenButton = find('[data-do="reopen"]');
const ctrl = find('[data-key="ctrl"]');
const encoder = new TextEncoder();

allowStyles(document.querySelector('meta[name="style-nonce"]').content);
const terminal = new Terminal({
  fontFamily: getComputedStyle(document.documentElement).getPropertyValue("--mono"),
  fontSize: matchMedia("(max-width: 40rem)").matches ? 13 : 14,
  lineHeight: 1.15,
  cursorBlink: true,
  scrollback: SCROLLBACK_LINES,
  minimumContrastRatio: 4.5,
  theme: colors(),
});
const fit = new FitAddon();
terminal.loadAddon(fit);
terminal.open(find("[data-screen]"));

const connection = new TerminalConnection({
  url: (columns, rows, resume) => {
    const where = `/api/vm/${encodeURIComponent(page.dataset.terminal)}/terminal`;
    const query = `?columns=${columns}&rows=${rows}&name=${encodeURIComponent(page.dataset.name)}&wake=${resume}`;
    return `${location.protocol === "https:" ? "wss:" : "ws:"}//${location.host}${where}${query}`;
  },
  size: () => [terminal.cols, terminal.rows],
  onOpen: () => {
    terminal.reset(); // the server sends the whole screen again
    showState("ok", "Connected");
    hideProblem(reopenButton);
  },
  onData: (bytes) => terminal.write(bytes),
  onLost: () => showState("attention", "Reconnecting"),
  onResuming: () => {
    showState("busy", "Resuming the machine…");
    printNotice("Resuming the machine…");
  },
  onHibernated: () => {
    showState("off", "Hibernated: type to resume");
    printNotice("The machine is hibernated. Type to resume it.");
  },
  onEnd: ({ error }) => {
    showState("off", error ? "Not connected" : "Closed");
    reopenButton.hidden = false;
    showProblem(error ?? { message: "The terminal was closed" }, reopenButton);
    reopenButton.focus();
  },
});

function showState(kind, text) {
  state.className = `badge ${kind}`;
  if (state.textContent !== text) state.textContent = text;
}

/** Print a message on the screen: phones have no space for it above. Reconnecting removes it. */
function printNotice(text) {
  terminal.write(`\r\n\x1b[2m[${text}]\x1b[0m`);
}

function open() {
  reopenButton.hidden = true;
  hideProblem(reopenButton);
  showState("busy", "Connecting");
  fit.fit();
  connection.open(true);
  terminal.focus();
}

// -- typing --------------------------------------------------------------------------------------

terminal.onData((text) => {
  if (ctrl.ariaPressed === "true" && text.length === 1) {
    ctrl.ariaPressed = "false";
    text = String.fromCharCode(text.toUpperCase().charCodeAt(0) & 0x1f);
  }
  if (!connection.resume()) connection.send(encoder.encode(text));
});
terminal.onBinary((text) => connection.send(Uint8Array.from(text, (it) => it.charCodeAt(0))));
terminal.onResize(({ cols, rows }) => connection.resize(cols, rows));
terminal.attachCustomKeyEventHandler((event) => {
  if (event.type !== "keydown" || !event.ctrlKey || !event.shiftKey || event.code !== "KeyC") return true;
  event.preventDefault();
  copySelection();
  return false;
});

async function copySelection() {
  if (terminal.hasSelection()) await copy(terminal.getSelection());
  terminal.focus();
}

async function paste() {
  try {
    terminal.paste(await navigator.clipboard.readText());
    terminal.focus();
  } catch {
    const dialog = document.getElementById("paste-dialog"); // plain http, or permission denied
    const text = dialog.querySelector("textarea");
    dialog.returnValue = "";
    text.value = "";
    dialog.addEventListener(
      "close",
      () => {
        if (dialog.returnValue === "yes") terminal.paste(text.value);
        terminal.focus();
      },
      { once: true },
    );
    dialog.showModal();
  }
}

page.addEventListener("click", ({ target }) => {
  const action = target.closest("[data-do]")?.dataset.do;
  if (action === "reopen") open();
  if (action === "copy") copySelection();
  if (action === "paste") paste();
  const key = target.closest("[data-key]")?.dataset.key;
  if (key === "ctrl") ctrl.ariaPressed = String(ctrl.ariaPressed !== "true");
  else if (key && !connection.resume()) {
    const isCursorKey = terminal.modes.applicationCursorKeysMode && KEYS[key].length === 3;
    connection.send(encoder.encode(isCursorKey ? KEYS[key].replace("[", "O") : KEYS[key]));
  }
  if (key) terminal.focus();
});
// These keys must not take the focus, or phones would hide the keyboard.
find(".terminal-keys").addEventListener("pointerdown", (event) => event.preventDefault());

// -- size and colors -----------------------------------------------------------------------------

new ResizeObserver(() => fit.fit()).observe(find("[data-screen]"));
// The on-screen keyboard covers the page: the visible rest of the window is the page's height.
visualViewport?.addEventListener("resize", () => {
  document.body.style.height = `${visualViewport.height}px`;
});

function colors() {
  const style = getComputedStyle(document.body);
  const isDark = matchMedia("(prefers-color-scheme: dark)").matches;
  const theme = document.documentElement.dataset.theme || (isDark ? "dark" : "light");
  const base = { background: style.backgroundColor, foreground: style.color, cursor: style.color };
  if (theme === "dark") return { ...base, selectionBackground: "#3b4a80" };
  return {
    ...base,
    selectionBackground: "#c3cffb",
    ...{ black: "#191a20", red: "#b3261e", green: "#17703f", yellow: "#8a4b00", blue: "#2f49b8" },
    ...{ magenta: "#8a2f8f", cyan: "#0f6a78", white: "#575a66", brightBlack: "#686b78" },
    ...{ brightRed: "#c4342b", brightGreen: "#1d8049", brightYellow: "#9a5800", brightBlue: "#3d5bd9" },
    ...{ brightMagenta: "#9b3ba0", brightCyan: "#147a8a", brightWhite: "#191a20" },
  };
}
const updateTheme = () => (terminal.options.theme = colors());
document.addEventListener("polydev:theme", updateTheme);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", updateTheme);

open();
