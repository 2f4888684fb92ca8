// The connect page: follows a session, shows its live view, submits pasted codes, and leads to the
// chat at the end. The server renders the session (`connect/state.html`); this reads its attributes.
// The session continues if the page is closed.

import { api, Problem } from "../shared/api.js";
import { fetchFragment, morph } from "../shared/fragments.js";
import { go } from "../shared/navigation.js";
import { busy, hideProblem, showProblem } from "../shared/ui.js";
import { Screen } from "./screen.js";

const WAIT_S = 25;
const FIRST_PAUSE_MS = 500;
const MAX_PAUSE_MS = 10_000;
const REDIRECT_MS = 2500;
const URGENT_MS = 120_000;

const frame = document.getElementById("connect");
const session = frame.dataset.session;
const state = () => document.getElementById("connect-state");

/** Difference between this browser's clock and the server's. */
let clockOffset = 0;

// -- updates -------------------------------------------------------------------------------------

/** Wait for a newer version of the session's state, as an element. */
async function nextState(version) {
  const query = new URLSearchParams({ after: version, wait: WAIT_S });
  const html = await fetchFragment(`/fragments/connect/${session}?${query}`);
  if (html === null) return new Promise(() => {}); // the browser leaves for the sign-in page
  return new DOMParser().parseFromString(html, "text/html").getElementById("connect-state");
}

/** Keep the page up to date until the session ends, over interruptions too. */
async function follow() {
  let pause = FIRST_PAUSE_MS;
  while (state().dataset.phase !== "ended") {
    try {
      const found = await nextState(state().dataset.version);
      pause = FIRST_PAUSE_MS;
      if (found.dataset.version !== state().dataset.version) draw(found);
    } catch {
      await new Promise((resolve) => {
        setTimeout(resolve, pause);
        addEventListener("online", resolve, { once: true });
      });
      pause = Math.min(2 * pause, MAX_PAUSE_MS);
    }
  }
}

function draw(found) {
  morph(state(), found);
  applyState();
  if (state().dataset.status === "completed") redirectSoon();
}

function applyState() {
  const { phase, now, waiting } = state().dataset;
  clockOffset = Date.now() - Date.parse(now);
  frame.dataset.phase = phase;
  tick();
  if (!screen) return;
  if (phase === "preparing") screen.prepare(state().querySelector("li.now .step-label")?.textContent ?? "");
  else if (phase === "seeing") screen.show();
  else if (phase === "finishing") screen.hide("You are logged in. Polydev does the rest.");
  else if (phase === "ended") screen.hide("");
  offerOwnBrowser(waiting === "yes" ? state().dataset.ownBrowserUrl : "");
}

/** Update the duration of the current step and the time left. */
function tick() {
  const at = Date.now() - clockOffset;
  for (const since of state().querySelectorAll("[data-since]")) {
    setText(since, formatDuration(Math.max(0, at - Date.parse(since.dataset.since))));
  }
  for (const until of state().querySelectorAll("[data-until]")) {
    const left = Math.max(0, Date.parse(until.dataset.until) - at);
    setText(until.querySelector("[data-left]"), `${formatDuration(left, Math.ceil)} left`);
    until.classList.toggle("urgent", left < URGENT_MS);
  }
}

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function formatDuration(milliseconds, round = Math.floor) {
  const seconds = round(milliseconds / 1000);
  if (seconds < 60) return `${seconds} s`;
  return `${Math.floor(seconds / 60)} min ${String(seconds % 60).padStart(2, "0")} s`;
}

// -- the user's own browser------------------------------------------------------------------------

const ownBrowser = document.getElementById("own-browser");
const form = document.getElementById("paste");
const field = document.getElementById("paste-text");

function offerOwnBrowser(url) {
  if (!ownBrowser) return;
  ownBrowser.hidden = !isWebPage(url);
  if (ownBrowser.hidden) return;
  document.getElementById("own-browser-open").href = url;
  setText(document.getElementById("own-browser-url"), url);
}

function isWebPage(text) {
  try {
    return ["https:", "http:"].includes(new URL(text).protocol);
  } catch {
    return false;
  }
}

/** Pasted text as the API takes it: an address, or else a code. */
function parseInput(text) {
  if (/^https?:\/\//i.test(text)) return { callbackUrl: text };
  if (/^(localhost|127\.0\.0\.1|\[::1\])[:/]/i.test(text)) return { callbackUrl: `http://${text}` };
  return { code: text };
}

async function submitInput(event) {
  event.preventDefault();
  hideProblem(form);
  field.removeAttribute("aria-invalid");
  const text = field.value.trim();
  try {
    if (!text) throw new Problem(0, { detail: "The field is empty", hint: "Paste the text first" });
    const button = form.querySelector("button[type=submit]");
    await busy(button, () => api("POST", `/api/auth/session/${session}/input`, parseInput(text)));
    field.value = "";
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    field.setAttribute("aria-invalid", "true");
    showProblem(problem, form);
    field.focus();
  }
}

// -- the end -------------------------------------------------------------------------------------

/** Open a new chat with the CLI. */
async function openChat() {
  try {
    const chat = await api("POST", "/api/chats", { provider: frame.dataset.provider });
    go(`/chat/${chat.chatId}`);
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    go("/chat");
  }
}

/** Open the chat after a moment, unless the user does something first. */
function redirectSoon() {
  const timer = setTimeout(openChat, REDIRECT_MS);
  for (const kind of ["pointerdown", "keydown", "visibilitychange"]) {
    document.addEventListener(kind, () => clearTimeout(timer), { once: true });
  }
}

const screen = document.getElementById("screen")
  ? new Screen(document.getElementById("screen"), session)
  : null;
form?.addEventListener("submit", submitInput);
frame.addEventListener("click", (event) => {
  const button = event.target.closest("#chat");
  if (button) busy(button, openChat);
});
applyState();
setInterval(tick, 1000);
follow();
