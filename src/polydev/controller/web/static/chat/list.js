/**
 * The list of chats beside and before a chat: new ones, titles, deleting; kept true by events.
 */

import { api, ask, busy, Problem, showProblem, tellTimes } from "../app.js";

const SOON_MS = 250;
const list = () => document.getElementById("chat-list");
let due = null;

/** Fetch the list again, and change what changed: open menus and the focus stay. */
async function refresh(url = list().dataset.source) {
  const answer = await fetch(url, { headers: { "HX-Current-URL": location.href } });
  if (answer.headers.has("HX-Redirect")) return location.assign(answer.headers.get("HX-Redirect"));
  if (!answer.ok) return;
  const keepOpen = (name, node) => name !== "open" || node.tagName !== "DETAILS";
  globalThis.Idiomorph.morph(list(), await answer.text(), {
    morphStyle: "outerHTML",
    callbacks: { beforeAttributeUpdated: keepOpen },
  });
  tellTimes(list());
}

function soon() {
  due ??= setTimeout(() => {
    due = null;
    refresh().catch(() => {}); // the next event tries again
  }, SOON_MS);
}

async function create(button) {
  const { provider } = button.dataset;
  const chat = await busy(button, () => api("POST", "/api/chats", { provider }));
  location.assign(`/chat/${chat.chatId}`);
}

function rename({ dataset }) {
  const dialog = document.getElementById("rename");
  const form = dialog.querySelector("form");
  const title = document.querySelector("[data-title]");
  const isHere = title && location.pathname === `/chat/${dataset.chat}`;
  form.dataset.api = `PATCH /api/chats/${dataset.chat}`;
  form.elements.title.value = isHere ? title.textContent : dataset.chatTitle;
  form.querySelector("[data-problem]").hidden = true;
  dialog.showModal();
  form.elements.title.select();
}

async function remove({ dataset }) {
  const sure = await ask({
    title: "Delete this chat?",
    text: `This permanently deletes “${dataset.chatTitle}” and all its messages. Files in your machine are kept.`,
    button: "Delete",
  });
  if (!sure) return;
  await api("DELETE", `/api/chats/${dataset.chat}`);
  if (location.pathname === `/chat/${dataset.chat}`) location.assign("/chat");
  else await refresh();
}

const ACTIONS = { "new-chat": create, rename, delete: remove, "more-chats": ({ dataset }) => refresh(dataset.more) };

document.addEventListener("click", async (event) => {
  for (const menu of document.querySelectorAll("details.menu[open]")) {
    if (!menu.contains(event.target) || event.target.closest("button, a")) menu.open = false;
  }
  const button = event.target.closest("[data-do]");
  if (!button) return;
  try {
    await ACTIONS[button.dataset.do](button);
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    showProblem(problem);
  }
});

document.addEventListener("keydown", (event) => {
  const menu = event.key === "Escape" && document.querySelector("details.menu[open]");
  if (!menu) return;
  menu.open = false;
  menu.querySelector("summary").focus();
});

document.getElementById("rename").addEventListener("polydev:done", ({ detail }) => {
  document.getElementById("rename").close();
  const title = document.querySelector("[data-title]");
  if (title && location.pathname === `/chat/${detail.chatId}`) title.textContent = detail.title;
  soon();
});

for (const kind of ["chat", "credential", "reset"]) document.body.addEventListener(`polydev:${kind}`, soon);
