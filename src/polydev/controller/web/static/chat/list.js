/**
 * The list of chats: creates, renames and deletes them, and follows their events.
 */

import { api, Problem } from "../shared/api.js";
import { fetchFragment, morph } from "../shared/fragments.js";
import { go, redirect } from "../shared/navigation.js";
import { busy, confirmDialog, showProblem } from "../shared/ui.js";

const BATCH_MS = 250;
const list = () => document.getElementById("chat-list");
let timer = null;

/** Fetch the list again and morph it: open menus and the focus stay. */
async function refreshList(url = list().dataset.source) {
  const html = await fetchFragment(url);
  if (html === null) return;
  const keepOpen = (name, node) => name !== "open" || node.tagName !== "DETAILS";
  morph(list(), html, { morphStyle: "outerHTML", callbacks: { beforeAttributeUpdated: keepOpen } });
}

function refreshSoon() {
  timer ??= setTimeout(() => {
    timer = null;
    refreshList().catch(() => {}); // the next event tries again
  }, BATCH_MS);
}

async function create(button) {
  const { provider } = button.dataset;
  const chat = await busy(button, () => api("POST", "/api/chats", { provider }));
  go(`/chat/${chat.chatId}`);
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
  const confirmed = await confirmDialog({
    title: "Delete this chat?",
    text: `This permanently deletes “${dataset.chatTitle}” and all its messages. Files in your machine are kept.`,
    button: "Delete",
  });
  if (!confirmed) return;
  await api("DELETE", `/api/chats/${dataset.chat}`);
  if (location.pathname === `/chat/${dataset.chat}`) redirect("/chat");
  else await refreshList();
}

const ACTIONS = { "new-chat": create, rename, delete: remove, "more-chats": ({ dataset }) => refreshList(dataset.more) };

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
  refreshSoon();
});

for (const kind of ["chat", "credential", "reset"]) document.body.addEventListener(`polydev:${kind}`, refreshSoon);
