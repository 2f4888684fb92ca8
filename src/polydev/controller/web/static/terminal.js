// The terminal's page: xterm.js on the screen, a Link to the machine, and the keys that a phone lacks.

import { copy, hideProblem, showProblem } from "./app.js";
import { Link } from "./terminal_link.js";
import { FitAddon } from "./vendor/xterm/addon-fit.mjs";
import { Terminal } from "./vendor/xterm/xterm.mjs";
import { allowStyles } from "./xterm_styles.js";

const SCROLLBACK_LINES = 10_000;
const KEYS = { esc: "\x1b", tab: "\t", up: "\x1b[A", down: "\x1b[B", right: "\x1b[C", left: "\x1b[D" };

const page = document.querySelector("[data-terminal]");
const find = (selector) => page.querySelector(selector);
const state = find("[data-state]");
const again = find('[data-do="again"]');
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
  theme: colours(),
});
const fit = new FitAddon();
terminal.loadAddon(fit);
terminal.open(find("[data-screen]"));

const link = new Link({
  url: (columns, rows, wake) => {
    const where = `/api/vm/${encodeURIComponent(page.dataset.terminal)}/terminal`;
    const query = `?columns=${columns}&rows=${rows}&name=${encodeURIComponent(page.dataset.name)}&wake=${wake}`;
    return `${location.protocol === "https:" ? "wss:" : "ws:"}//${location.host}${where}${query}`;
  },
  size: () => [terminal.cols, terminal.rows],
  opened: () => {
    terminal.reset(); // all of it is told again
    tell("ok", "Connected");
    hideProblem(again);
  },
  bytes: (bytes) => terminal.write(bytes),
  cut: () => tell("attention", "Reconnecting"),
  waits: () => {
    tell("busy", "Resuming the machine…");
    note("Resuming the machine…");
  },
  asleep: () => {
    tell("off", "Hibernated: type to resume");
    note("The machine is hibernated. Type to resume it.");
  },
  ended: ({ error }) => {
    tell("off", error ? "Not connected" : "Closed");
    again.hidden = false;
    showProblem(error ?? { message: "The terminal was closed" }, again);
    again.focus();
  },
});

function tell(kind, words) {
  state.className = `badge ${kind}`;
  if (state.textContent !== words) state.textContent = words;
}

/** A word of the page's own on the screen: a phone has no room for it above. It goes with the next
 *  opening, which tells all of the screen again. */
function note(words) {
  terminal.write(`\r\n\x1b[2m[${words}]\x1b[0m`);
}

function open() {
  again.hidden = true;
  hideProblem(again);
  tell("busy", "Connecting");
  fit.fit();
  link.open(true);
  terminal.focus();
}

// -- typing --------------------------------------------------------------------------------------

terminal.onData((text) => {
  if (ctrl.ariaPressed === "true" && text.length === 1) {
    ctrl.ariaPressed = "false";
    text = String.fromCharCode(text.toUpperCase().charCodeAt(0) & 0x1f);
  }
  if (!link.wake()) link.send(encoder.encode(text));
});
terminal.onBinary((text) => link.send(Uint8Array.from(text, (it) => it.charCodeAt(0))));
terminal.onResize(({ cols, rows }) => link.resize(cols, rows));
terminal.attachCustomKeyEventHandler((event) => {
  if (event.type !== "keydown" || !event.ctrlKey || !event.shiftKey || event.code !== "KeyC") return true;
  event.preventDefault();
  copySelected();
  return false;
});

async function copySelected() {
  if (terminal.hasSelection()) await copy(terminal.getSelection());
  terminal.focus();
}

async function paste() {
  try {
    terminal.paste(await navigator.clipboard.readText());
    terminal.focus();
  } catch {
    const dialog = document.getElementById("paste-dialog"); // plain http, or the person said no
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
  const what = target.closest("[data-do]")?.dataset.do;
  if (what === "again") open();
  if (what === "copy") copySelected();
  if (what === "paste") paste();
  const key = target.closest("[data-key]")?.dataset.key;
  if (key === "ctrl") ctrl.ariaPressed = String(ctrl.ariaPressed !== "true");
  else if (key && !link.wake()) {
    const moves = terminal.modes.applicationCursorKeysMode && KEYS[key].length === 3;
    link.send(encoder.encode(moves ? KEYS[key].replace("[", "O") : KEYS[key]));
  }
  if (key) terminal.focus();
});
// A key of the row must not take the focus: a phone would put its keyboard away.
find(".terminal-keys").addEventListener("pointerdown", (event) => event.preventDefault());

// -- size and colours ----------------------------------------------------------------------------

new ResizeObserver(() => fit.fit()).observe(find("[data-screen]"));
// A phone's keyboard lies over the page: what is left of the window is the page's height.
visualViewport?.addEventListener("resize", () => {
  document.body.style.height = `${visualViewport.height}px`;
});

function colours() {
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
const recolour = () => (terminal.options.theme = colours());
document.addEventListener("polydev:theme", recolour);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);

open();
