// The connect page: follows one session, shows its live view, takes what is pasted, and at its end
// leads to the chat. What the session is like, the server draws (`connect_state.html`); this reads
// its attributes. Closing the page harms nothing: everything goes on without it.

import { api, busy, hideProblem, Problem, showProblem } from "./app.js";
import { Screen } from "./connect/screen.js";

const WAIT_S = 25;
const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 10_000;
const LEAD_ON_MS = 2500;
const SOON_MS = 120_000;

const frame = document.getElementById("connect");
const session = frame.dataset.session;
const state = () => document.getElementById("connect-state");

/** By how much this browser's clock is ahead of the server's. */
let ahead = 0;

// -- following -----------------------------------------------------------------------------------

async function next(version) {
  const asked = new URLSearchParams({ after: version, wait: WAIT_S });
  const answer = await fetch(`/fragments/connect/${session}?${asked}`, { cache: "no-store" });
  if (answer.status === 401) location.reload(); // it leads to the page for signing in, and back
  if (!answer.ok) throw new Error(`the session's state: ${answer.status}`);
  const parsed = new DOMParser().parseFromString(await answer.text(), "text/html");
  return parsed.getElementById("connect-state");
}

/** Keep the page as the session is, over every interruption, until its end. */
async function follow() {
  let pause = FIRST_PAUSE_MS;
  while (state().dataset.phase !== "ended") {
    try {
      const found = await next(state().dataset.version);
      pause = FIRST_PAUSE_MS;
      if (found.dataset.version !== state().dataset.version) draw(found);
    } catch {
      await new Promise((resolve) => {
        setTimeout(resolve, pause);
        addEventListener("online", resolve, { once: true });
      });
      pause = Math.min(2 * pause, LONGEST_PAUSE_MS);
    }
  }
}

function draw(found) {
  globalThis.Idiomorph.morph(state(), found);
  react();
  if (state().dataset.status === "completed") lead();
}

function react() {
  const { phase, now, waiting } = state().dataset;
  ahead = Date.now() - Date.parse(now);
  frame.dataset.phase = phase;
  tick();
  if (!screen) return;
  if (phase === "preparing") screen.prepare(state().querySelector("li.now .step-words")?.textContent ?? "");
  else if (phase === "seeing") screen.show();
  else if (phase === "finishing") screen.hide("You are logged in. Polydev does the rest.");
  else if (phase === "ended") screen.hide("");
  offerOwnBrowser(waiting === "yes" ? state().dataset.ownUrl : "");
}

/** Tell how long the present step lasts, and how long there is left. */
function tick() {
  const at = Date.now() - ahead;
  for (const since of state().querySelectorAll("[data-since]")) {
    tell(since, lasted(Math.max(0, at - Date.parse(since.dataset.since))));
  }
  for (const until of state().querySelectorAll("[data-until]")) {
    const left = Math.max(0, Date.parse(until.dataset.until) - at);
    tell(until.querySelector("[data-left]"), `${lasted(left, Math.ceil)} left`);
    until.classList.toggle("soon", left < SOON_MS);
  }
}

function tell(element, words) {
  if (element.textContent !== words) element.textContent = words;
}

function lasted(milliseconds, rounded = Math.floor) {
  const seconds = rounded(milliseconds / 1000);
  if (seconds < 60) return `${seconds} s`;
  return `${Math.floor(seconds / 60)} min ${String(seconds % 60).padStart(2, "0")} s`;
}

// -- their own browser ---------------------------------------------------------------------------

const own = document.getElementById("own");
const form = document.getElementById("paste");
const field = document.getElementById("paste-text");

function offerOwnBrowser(url) {
  if (!own) return;
  own.hidden = !isWebPage(url);
  if (own.hidden) return;
  document.getElementById("own-open").href = url;
  tell(document.getElementById("own-url"), url);
}

function isWebPage(text) {
  try {
    return ["https:", "http:"].includes(new URL(text).protocol);
  } catch {
    return false;
  }
}

/** What was pasted as the API takes it: an address, or else a code. */
function handedIn(text) {
  if (/^https?:\/\//i.test(text)) return { callbackUrl: text };
  if (/^(localhost|127\.0\.0\.1|\[::1\])[:/]/i.test(text)) return { callbackUrl: `http://${text}` };
  return { code: text };
}

async function handIn(event) {
  event.preventDefault();
  hideProblem(form);
  field.removeAttribute("aria-invalid");
  const text = field.value.trim();
  try {
    if (!text) throw new Problem(0, { detail: "The field is empty", hint: "Paste the text first" });
    const button = form.querySelector("button[type=submit]");
    await busy(button, () => api("POST", `/api/auth/session/${session}/input`, handedIn(text)));
    field.value = "";
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    field.setAttribute("aria-invalid", "true");
    showProblem(problem, form);
    field.focus();
  }
}

// -- the end -------------------------------------------------------------------------------------

/** To a new chat with the CLI, in the machine that it is logged in in. */
async function chat() {
  try {
    const made = await api("POST", "/api/chats", { provider: frame.dataset.provider });
    location.assign(`/chat/${made.chatId}`);
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    location.assign("/chat");
  }
}

/** Who saw it complete goes on to the chat, unless they do something else first. */
function lead() {
  const going = setTimeout(chat, LEAD_ON_MS);
  for (const kind of ["pointerdown", "keydown", "visibilitychange"]) {
    document.addEventListener(kind, () => clearTimeout(going), { once: true });
  }
}

const screen = document.getElementById("screen")
  ? new Screen(document.getElementById("screen"), session)
  : null;
form?.addEventListener("submit", handIn);
frame.addEventListener("click", (event) => {
  const button = event.target.closest("#chat");
  if (button) busy(button, chat);
});
react();
setInterval(tick, 1000);
follow();
