// Behaviour of every page: forms and buttons that call the API, dialogs, theme, times, events.
//
// A form or button with `data-api="POST /api/..."` sends JSON. Attributes say what follows:
// `data-goto="/x"`, `data-toast="Saved"`, `data-reset`, `data-refresh="id"` of a fragment. A page's
// own module can listen to `polydev:done` (detail: the response). `data-confirm…` asks first.

import { api, meta, Problem } from "./shared/api.js";
import { EventStream } from "./shared/events.js";
import { updateTimes } from "./shared/format.js";
import { refresh, startFragments } from "./shared/fragments.js";
import { go } from "./shared/navigation.js";
import { busy, confirmDialog, copy, hideProblem, showProblem, toast } from "./shared/ui.js";

export { api };

const TIMES_EVERY_MS = 20_000;

// -- forms and buttons ---------------------------------------------------------------------------

/** The fields of a form as JSON. `data-as` gives a field's type: `number`, `list` (all checked
 *  boxes of that name), `text` (null if empty). */
function fieldsOf(form) {
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

async function send(element, body) {
  const [method, path] = element.dataset.api.split(" ");
  const button = element.matches("form") ? element.querySelector("button[type=submit]") : element;
  hideProblem(element);
  try {
    const response = await busy(button, () => api(method, path, body));
    const { goto, toast: text, reset, refresh: fragment } = element.dataset;
    if (reset !== undefined) element.reset();
    if (text) toast(text);
    if (fragment) refresh(document.getElementById(fragment));
    element.dispatchEvent(new CustomEvent("polydev:done", { bubbles: true, detail: response }));
    // `{sessionId}` in the path stands for that field of the response.
    if (goto) go(goto.replace(/\{(\w+)\}/g, (_, name) => encodeURIComponent(response?.[name] ?? "")));
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    showProblem(problem, element);
  }
}

function firstInvalid(form) {
  let first = null;
  for (const field of form.querySelectorAll("input, select, textarea")) {
    const isInvalid = !field.checkValidity();
    if (isInvalid) field.setAttribute("aria-invalid", "true");
    else field.removeAttribute("aria-invalid");
    if (isInvalid) first ??= field;
  }
  return first;
}

const confirmed = ({ dataset }) =>
  confirmDialog({
    title: dataset.confirm,
    text: dataset.confirmText ?? "",
    button: dataset.confirmButton ?? "Continue",
    danger: dataset.confirmDanger !== "no",
    typed: dataset.confirmTyped ?? "",
  });

document.addEventListener("submit", async (event) => {
  const form = event.target;
  if (!form.matches("form[data-api]")) return;
  event.preventDefault();
  const invalid = firstInvalid(form);
  if (invalid) {
    const name = form.querySelector(`label[for="${invalid.id}"]`)?.textContent.trim() ?? "";
    showProblem({ message: name ? `${name}: ${invalid.validationMessage}` : invalid.validationMessage }, form);
    return invalid.focus();
  }
  if (form.dataset.confirm && !(await confirmed(form))) return;
  await send(form, fieldsOf(form));
});

document.addEventListener("click", async (event) => {
  const element = event.target.closest(
    "[data-api], [data-copy], [data-open], [data-close], [data-theme-toggle], [data-refresh-fragment]",
  );
  if (!element || element.matches("form")) return;
  const { dataset } = element;
  if (dataset.copy) await copy(document.getElementById(dataset.copy)?.textContent.trim() ?? "");
  else if (dataset.open) document.getElementById(dataset.open).showModal();
  else if (element.matches("[data-close]")) element.closest("dialog").close();
  else if (element.matches("[data-theme-toggle]")) toggleTheme();
  else if (dataset.refreshFragment) {
    await busy(element, () => refresh(document.getElementById(dataset.refreshFragment)));
  } else if (!dataset.confirm || (await confirmed(element))) {
    await send(element, dataset.body ? JSON.parse(dataset.body) : undefined);
  }
});

// A secret leaves the page when its dialog closes.
for (const dialog of document.querySelectorAll("dialog:has([data-secret])")) {
  dialog.addEventListener("close", () => {
    for (const secret of dialog.querySelectorAll("[data-secret]")) secret.textContent = "";
  });
}

// -- theme ---------------------------------------------------------------------------------------

function toggleTheme() {
  const root = document.documentElement;
  const isDark = root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = isDark ? "light" : "dark";
  document.cookie = `polydev_theme=${root.dataset.theme}; path=/; max-age=31536000; samesite=lax`;
  document.dispatchEvent(new CustomEvent("polydev:theme", { detail: root.dataset.theme }));
}

// -- start ---------------------------------------------------------------------------------------

updateTimes();
setInterval(updateTimes, TIMES_EVERY_MS);
startFragments();
if (meta("user-id")) new EventStream(meta("user-id"));
