// Parts of the interface that every page uses: icons, toasts, problems, dialogs, the clipboard.

const TOAST_MS = 5000;
const WARNING_MS = 12_000;

/** An icon of icons.svg as an element. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `${new URL("../icons.svg", import.meta.url).pathname}#${name}`);
  svg.append(use);
  return svg;
}

/** Show a short message that screen readers announce. */
export function toast(text, kind = "ok") {
  const element = document.createElement("div");
  element.className = `toast ${kind}`;
  element.append(icon(kind === "ok" ? "check-circle" : "alert"), text);
  document.getElementById("status").append(element);
  setTimeout(() => element.remove(), kind === "ok" ? TOAST_MS : WARNING_MS);
}

/** Show a problem in the nearest `[data-problem]`, or else as a toast. */
export function showProblem(problem, near) {
  const slot = scopeOf(near)?.querySelector("[data-problem]");
  const hint = problem.hint ?? "";
  if (!slot) return toast(hint ? `${asSentence(problem.message)} ${hint}` : problem.message, "attention");
  const text = document.createElement("div");
  const message = document.createElement("strong");
  message.textContent = asSentence(problem.message);
  text.append(message);
  if (hint) text.append(" ", asSentence(hint));
  slot.replaceChildren(icon("alert"), text);
  slot.hidden = false;
}

export function hideProblem(near) {
  for (const slot of scopeOf(near)?.querySelectorAll("[data-problem]") ?? []) slot.hidden = true;
}

const scopeOf = (element) => element?.closest("form, dialog, [data-problem-scope]") ?? element;

const asSentence = (text) => (/[.!?]$/.test(text) ? text : `${text}.`);

/** Show a button as busy, without changing its width, while the work runs. */
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

/** Ask the user to confirm; resolves to true or false. The user must type `typed` first. */
export function confirmDialog({ title, text, button = "Continue", danger = true, typed = "" }) {
  const dialog = document.createElement("dialog");
  dialog.className = "dialog";
  dialog.setAttribute("aria-labelledby", "confirm-title");
  dialog.innerHTML = `<form method="dialog" class="stack">
    <h2 id="confirm-title"></h2><p class="confirm-text"></p>
    <div class="field" hidden><label for="confirm-typed"></label>
      <input id="confirm-typed" autocomplete="off" autocapitalize="none" spellcheck="false"></div>
    <div class="actions"><button class="button" value="no">Cancel</button>
      <button class="button" value="yes"></button></div></form>`;
  dialog.querySelector("h2").textContent = title;
  dialog.querySelector(".confirm-text").textContent = text;
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
  // Enter in the field would press the first button, which cancels.
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

/** Copy a text to the clipboard, and confirm it with a toast. */
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
    if (!done) return toast("Your browser blocks copying. Select the text and copy it yourself.", "attention");
  }
  toast("Copied");
}
