// What every page does: asks the API, shows problems, says what happened, tells of events.
//
// Forms and buttons with `data-api="POST /api/..."` are sent as JSON; a page's own module listens to
// `polydev:done` (detail: the answer), or the element says what comes then: `data-goto="/x"`,
// `data-said="Saved"`, `data-reset`, `data-refresh="id"` of a piece to fetch again. Problems are shown in the nearest `[data-problem]`.

const meta = (name) => document.querySelector(`meta[name="${name}"]`)?.content ?? "";

/** What the API answered instead of what was asked (RFC 9457). */
export class Problem extends Error {
  constructor(status, { detail, hint, code } = {}) {
    super(detail || "Polydev sent an invalid response.");
    this.status = status;
    this.code = code ?? "";
    this.hint = hint ?? "";
  }
}

/** Ask the API: the answer's JSON, or null if it has none. Throws Problem. */
export async function api(method, path, body) {
  const headers = { Accept: "application/json", "X-CSRF-Token": meta("csrf-token") };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      cache: "no-store",
    });
  } catch {
    throw new Problem(0, {
      code: "unreachable",
      detail: "Polydev is not responding.",
      hint: "Check your connection, then try again.",
    });
  }
  if (answer.ok) {
    return answer.status === 204 ? null : answer.json();
  }
  const told = await answer.json().catch(() => ({}));
  if (answer.status === 401 && meta("person")) {
    location.assign(`/sign-in?next=${encodeURIComponent(location.pathname + location.search)}`);
  }
  throw new Problem(answer.status, told);
}

/** A symbol of icons.svg as an element. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `${new URL("icons.svg", import.meta.url).pathname}#${name}`);
  svg.append(use);
  return svg;
}

/** Say something in the status region, for eyes and screen readers. */
export function say(text, kind = "ok") {
  const region = document.getElementById("status");
  const toast = document.createElement("div");
  toast.className = `toast ${kind}`;
  toast.append(icon(kind === "ok" ? "check-circle" : "alert"), text);
  region.append(toast);
  setTimeout(() => toast.remove(), kind === "ok" ? 5000 : 12000);
}

/** Show a problem where it belongs: near `where`, or else in the status region. */
export function showProblem(problem, where) {
  const scope = where?.closest("form, dialog, [data-problem-scope]") ?? where;
  const slot = scope?.querySelector("[data-problem]");
  const hint = problem.hint ?? "";
  if (!slot) return say(hint ? `${ended(problem.message)} ${hint}` : problem.message, "attention");
  const words = document.createElement("div");
  const what = document.createElement("strong");
  what.textContent = ended(problem.message);
  words.append(what);
  if (hint) words.append(" ", ended(hint));
  slot.replaceChildren(icon("alert"), words);
  slot.hidden = false;
}

export function hideProblem(where) {
  const scope = where?.closest("form, dialog, [data-problem-scope]") ?? where;
  for (const slot of scope?.querySelectorAll("[data-problem]") ?? []) slot.hidden = true;
}

const ended = (text) => (/[.!?]$/.test(text) ? text : `${text}.`);

/** Keep a button busy, at its width, while something lasts. */
export async function busy(button, work) {
  button?.setAttribute("aria-busy", "true");
  if (button) button.disabled = true;
  try {
    return await work();
  } finally {
    button?.removeAttribute("aria-busy");
    if (button) button.disabled = false;
  }
}

/** Ask before something is done; `typed` must be typed first. Resolves to true or false. */
export function ask({ title, text, button = "Yes", danger = true, typed = "" }) {
  const dialog = document.createElement("dialog");
  dialog.className = "dialog";
  dialog.setAttribute("aria-labelledby", "ask-title");
  dialog.innerHTML = `<form method="dialog" class="stack">
    <h2 id="ask-title"></h2><p class="ask-text"></p>
    <div class="field" hidden><label for="ask-typed"></label>
      <input id="ask-typed" autocomplete="off" autocapitalize="none" spellcheck="false"></div>
    <div class="actions"><button class="button" value="no">Cancel</button>
      <button class="button" value="yes"></button></div></form>`;
  dialog.querySelector("h2").textContent = title;
  dialog.querySelector(".ask-text").textContent = text;
  const yes = dialog.querySelector("button[value=yes]");
  yes.textContent = button;
  yes.classList.add(danger ? "danger" : "primary");
  const input = dialog.querySelector("input");
  if (typed) {
    dialog.querySelector(".field").hidden = false;
    dialog.querySelector("label").textContent = `Type “${typed}” to confirm`;
    yes.disabled = true;
    input.addEventListener("input", () => (yes.disabled = input.value.trim() !== typed));
  }
  // Enter in the field must not press the first button, which is the one that cancels.
  dialog.querySelector("form").addEventListener("submit", (event) => {
    if (event.submitter?.value === "no" || !yes.disabled) return;
    event.preventDefault();
  });
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    if (!yes.disabled) yes.click();
  });
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    });
  });
}

/** Put a text into the clipboard, and say so. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = document.createElement("textarea"); // plain http has no clipboard API
    area.value = text;
    area.className = "visually-hidden";
    (document.querySelector("dialog[open]") ?? document.body).append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    if (!done) return say("Your browser blocks copying. Select the text and copy it yourself.", "attention");
  }
  say("Copied");
}

/** The fields of a form as the API takes them. `data-as` says what a text stands for: `number`,
 *  `list` (of everything ticked under that name), `text` (null when empty). */
export function fieldsOf(form) {
  const body = {};
  for (const field of form.elements) {
    if (!field.name || field.disabled) continue;
    const { value } = field;
    if (field.dataset.as === "list") {
      body[field.name] ??= [];
      if (field.checked) body[field.name].push(value);
    } else if (field.type === "checkbox") body[field.name] = field.checked;
    else if (field.type === "radio" && !field.checked) continue;
    else if (field.dataset.as === "number") body[field.name] = value === "" ? null : Number(value);
    else if (field.dataset.as === "text") body[field.name] = value.trim() || null;
    else body[field.name] = value;
  }
  return body;
}

/** Send what an element's `data-api` says, and do what it says comes then. */
async function send(element, body) {
  const [method, path] = element.dataset.api.split(" ");
  const button = element.matches("form") ? element.querySelector("button[type=submit]") : element;
  hideProblem(element);
  try {
    const answer = await busy(button, () => api(method, path, body));
    const { goto, said, reset, refresh } = element.dataset;
    if (reset !== undefined) element.reset();
    if (said) say(said);
    if (refresh) window.htmx.trigger(`#${refresh}`, "refresh");
    element.dispatchEvent(new CustomEvent("polydev:done", { bubbles: true, detail: answer }));
    // `{sessionId}` in a path is that field of the answer.
    if (goto) location.assign(goto.replace(/\{(\w+)\}/g, (_, name) => encodeURIComponent(answer?.[name] ?? "")));
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    showProblem(problem, element);
  }
}

function firstInvalid(form) {
  let first = null;
  for (const field of form.querySelectorAll("input, select, textarea")) {
    const isWrong = !field.checkValidity();
    field.toggleAttribute("data-wrong", isWrong);
    if (isWrong) field.setAttribute("aria-invalid", "true");
    else field.removeAttribute("aria-invalid");
    if (isWrong) first ??= field;
  }
  return first;
}

document.addEventListener("submit", async (event) => {
  const form = event.target;
  if (!form.matches("form[data-api]")) return;
  event.preventDefault();
  const wrong = firstInvalid(form);
  if (wrong) {
    const name = form.querySelector(`label[for="${wrong.id}"]`)?.textContent.trim() ?? "";
    showProblem({ message: name ? `${name}: ${wrong.validationMessage}` : wrong.validationMessage }, form);
    return wrong.focus();
  }
  if (form.dataset.confirm && !(await confirmed(form))) return;
  await send(form, fieldsOf(form));
});

document.addEventListener("click", async (event) => {
  const element = event.target.closest("[data-api], [data-copy], [data-open], [data-close], [data-theme-toggle]");
  if (!element || element.matches("form")) return;
  if (element.dataset.copy) await copy(document.getElementById(element.dataset.copy)?.textContent.trim() ?? "");
  else if (element.dataset.open) document.getElementById(element.dataset.open).showModal();
  else if (element.matches("[data-close]")) element.closest("dialog").close();
  else if (element.matches("[data-theme-toggle]")) toggleTheme();
  else if (!element.dataset.confirm || (await confirmed(element))) {
    await send(element, element.dataset.body ? JSON.parse(element.dataset.body) : undefined);
  }
});

const confirmed = ({ dataset }) =>
  ask({
    title: dataset.confirm,
    text: dataset.confirmText ?? "",
    button: dataset.confirmButton ?? "Yes",
    danger: dataset.confirmDanger !== "no",
    typed: dataset.confirmTyped ?? "",
  });

// -- dark and light ------------------------------------------------------------------------------

function toggleTheme() {
  const root = document.documentElement;
  const isDark = root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = isDark ? "light" : "dark";
  document.cookie = `polydev_theme=${root.dataset.theme}; path=/; max-age=31536000; samesite=lax`;
  document.dispatchEvent(new CustomEvent("polydev:theme", { detail: root.dataset.theme }));
}

// -- times ---------------------------------------------------------------------------------------

const UNITS = [[86400, "day"], [3600, "hour"], [60, "minute"]];
const DAY = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "long", year: "numeric" });
const EXACT = new Intl.DateTimeFormat("en-GB", { dateStyle: "long", timeStyle: "medium" });

/** "2 minutes ago", "in 3 hours": the same words as web/formats.py. */
export function wordsAgo(then, at = Date.now()) {
  const seconds = (at - then) / 1000;
  if (Math.abs(seconds) >= 30 * 86400) return `on ${DAY.format(then)}`;
  for (const [length, unit] of UNITS) {
    const count = Math.floor(Math.abs(seconds) / length);
    if (count) return seconds > 0 ? `${count} ${unit}${count === 1 ? "" : "s"} ago` : `in ${count} ${unit}${count === 1 ? "" : "s"}`;
  }
  return seconds >= 0 ? "just now" : "in a moment";
}

/** Write times in the reader's own zone, and keep "ago" true. */
export function tellTimes(scope = document) {
  for (const element of scope.querySelectorAll("time[data-time]")) {
    const then = Date.parse(element.dateTime);
    if (Number.isNaN(then)) continue;
    const kind = element.dataset.time;
    const words = kind === "relative" ? wordsAgo(then) : (kind === "date" ? DAY : EXACT).format(then);
    if (element.textContent !== words) element.textContent = words;
    element.title = EXACT.format(then);
  }
}

tellTimes();
setInterval(tellTimes, 20_000);
document.addEventListener("htmx:afterSettle", (event) => tellTimes(event.detail.elt));

// -- events --------------------------------------------------------------------------------------
// One stream for all tabs of this browser: it may have only six connections to a plain-http server.
// The tab that holds the lock listens and tells the others; when it goes, the next takes over.

const KINDS = ["session", "machine", "credential", "token", "account", "chat", "reset"];

class Events {
  constructor(person) {
    this.last = Number(meta("events-after"));
    this.pause = 1000;
    const name = `polydev-events-${person}`;
    this.channel = new BroadcastChannel(name);
    this.channel.onmessage = ({ data }) => this.hear(data);
    // Without a lock (plain http under another name than localhost) every tab listens itself.
    if (!navigator.locks) return this.listen();
    this.channel.postMessage({ since: this.last });
    navigator.locks.request(name, () => new Promise(() => this.listen()));
  }

  /** Listen, and tell the other tabs. From what this page knew when it was made, nothing is missed. */
  listen() {
    const source = new EventSource(`/api/events?after=${this.last}`);
    source.onopen = () => (this.pause = 1000);
    for (const kind of KINDS) {
      source.addEventListener(kind, (event) => {
        const told = { kind, id: Number(event.lastEventId), data: JSON.parse(event.data) };
        this.channel.postMessage(told);
        this.tell(told);
      });
    }
    source.onerror = () => {
      if (source.readyState !== EventSource.CLOSED) return; // it tries again by itself
      // Who is signed out, elsewhere perhaps, is led to the door by `api`.
      api("GET", "/api/account").catch(() => {});
      setTimeout(() => this.listen(), this.pause);
      this.pause = Math.min(this.pause * 2, 30_000);
    };
    this.listens = true;
  }

  /** What another tab says: an event, or what it knew when it was opened. */
  hear(told) {
    if (told.kind) {
      if (told.kind === "reset" || told.id > this.last) this.tell(told);
    } else if (this.listens && told.since < this.last) {
      this.channel.postMessage({ kind: "reset", id: this.last, data: {} });
    }
  }

  tell({ kind, id, data }) {
    this.last = id;
    document.body.dispatchEvent(new CustomEvent(`polydev:${kind}`, { detail: data }));
  }
}

if (meta("person")) new Events(meta("person"));
