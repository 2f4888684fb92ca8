// The files' page: a folder as the API tells it. Every name is set as text; paths are the API's own.

import { Problem, api, ask, hideProblem, icon, say, showProblem, tellTimes } from "./app.js";
import { size } from "./charts.js";
import { inside, lastOf, parentOf, sameName, visible } from "./names.js";
import { Uploads } from "./uploads.js";

const HOME = "/root";
const page = document.querySelector("[data-files]");
const find = (name) => page.querySelector(`[data-${name}]`);
const base = `/api/vm/${encodeURIComponent(page.dataset.files)}`;
const symbols = { folder: "folder", file: "file", link: "external", other: "dots" };

let folder = HOME;
let entries = [];
let asked = 0;
let sleeps = false; // it wakes when it is asked for something

const uploads = new Uploads({
  base,
  list: find("uploads"),
  limit: Number(page.dataset.limit),
  done: (where) => where === folder && show(folder),
});

/** Show a folder. `keep`: as a new place in the browser's history. */
async function show(path, keep = false) {
  const mine = ++asked;
  hideProblem(page);
  if (sleeps) {
    find("loading-words").textContent = "Resuming the machine…";
    find("loading").hidden = false;
  }
  try {
    const told = await api("GET", `${base}/files?path=${path}`);
    if (mine !== asked) return; // somebody went elsewhere meanwhile
    folder = told.path;
    entries = told.entries;
    const url = `${location.pathname}?path=${folder}`;
    if (keep) history.pushState({ folder }, "", url);
    else history.replaceState({ folder }, "", url);
    drawCrumbs();
    drawEntries(told.more);
  } catch (problem) {
    told(problem);
  } finally {
    find("loading").hidden = true;
  }
}

function told(problem) {
  if (!(problem instanceof Problem)) throw problem;
  showProblem(problem, page);
}

function drawCrumbs() {
  const parts = folder.split("/").filter(Boolean);
  const crumbs = ["", ...parts].map((part, index) => {
    const path = `/${parts.slice(0, index).join("/")}`;
    const link = document.createElement("a");
    link.href = `?path=${path}`;
    link.dataset.go = path;
    link.textContent = index === 0 ? "/" : visible(part);
    if (path === folder) link.setAttribute("aria-current", "page");
    return link;
  });
  find("crumbs").replaceChildren(...crumbs);
}

function drawEntries(more) {
  find("entries").replaceChildren(...entries.map(row));
  find("table").hidden = entries.length === 0;
  find("empty").hidden = entries.length > 0;
  find("more").hidden = !more;
  tellTimes(find("entries"));
}

function row(entry) {
  const made = document.createElement("tr");
  const name = document.createElement("th");
  name.scope = "row";
  name.append(icon(symbols[entry.kind]), nameOf(entry));
  const bytes = document.createElement("td");
  bytes.className = "end numbers muted";
  bytes.textContent = entry.kind === "file" ? size(entry.size) : "";
  const changed = document.createElement("td");
  changed.className = "muted changed";
  const time = document.createElement("time");
  time.dateTime = entry.modifiedAt;
  time.dataset.time = "relative";
  changed.append(time);
  const actions = document.createElement("td");
  actions.className = "end";
  if (entry.kind === "file" || entry.kind === "link") actions.append(download(entry));
  // What lies at the top is the machine's: the API neither moves nor removes it.
  if (folder !== "/") {
    actions.append(button(entry, "rename", "edit", "Rename"), button(entry, "remove", "trash", "Delete"));
  }
  made.append(name, bytes, changed, actions);
  return made;
}

function nameOf(entry) {
  if (entry.kind === "file" || entry.kind === "other") {
    const plain = document.createElement("bdi");
    plain.textContent = entry.name;
    return plain;
  }
  const link = document.createElement("a");
  const text = document.createElement("bdi");
  text.textContent = entry.name;
  link.href = `?path=${entry.path}`;
  link.dataset.go = entry.path;
  link.append(text);
  return link;
}

function download(entry) {
  const link = document.createElement("a");
  link.className = "button quiet icon-only small";
  link.href = `${base}/files/content?path=${entry.path}`;
  link.download = "";
  link.setAttribute("aria-label", `Download ${entry.name}`);
  link.title = "Download";
  link.append(icon("download"));
  return link;
}

function button(entry, what, symbol, words) {
  const made = document.createElement("button");
  made.className = "button quiet icon-only small";
  made.type = "button";
  made.title = words;
  made.setAttribute("aria-label", `${words} ${entry.name}`);
  made.append(icon(symbol));
  made.addEventListener("click", () => (what === "rename" ? rename(entry) : remove(entry)));
  return made;
}

// -- what can be done --------------------------------------------------------------------------

/** Ask for a name; null when nothing is to be done. */
function askName(title, value) {
  const dialog = document.getElementById("name-dialog");
  const input = dialog.querySelector("input");
  dialog.querySelector("h2").textContent = title;
  dialog.returnValue = "";
  input.value = value;
  dialog.showModal();
  input.select();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes" ? input.value : null), { once: true });
  });
}

async function rename(entry) {
  const name = await askName("Rename", visible(lastOf(entry.path)));
  if (name === null || sameName(lastOf(entry.path), encodeURIComponent(name))) return;
  await change("POST", `files/move?path=${entry.path}&to=${inside(parentOf(entry.path), name)}`);
}

async function makeFolder() {
  const name = await askName("New folder", "");
  if (name !== null) await change("POST", `files/folder?path=${inside(folder, name)}`);
}

async function remove(entry) {
  const isFolder = entry.kind === "folder";
  const sure = await ask({
    title: `Delete ${isFolder ? "folder " : ""}“${entry.name}”?`,
    text: isFolder ? "This permanently deletes the folder and everything in it." : "This permanently deletes the file.",
    button: "Delete",
  });
  if (sure) await change("DELETE", `files?path=${entry.path}${isFolder ? "&withContent=true" : ""}`, "Deleted");
}

async function change(method, query, words = "") {
  try {
    await api(method, `${base}/${query}`);
    if (words) say(words);
    await show(folder);
  } catch (problem) {
    told(problem);
  }
}

async function upload(files) {
  const where = folder;
  for (const file of files) {
    const there = entries.find((it) => sameName(lastOf(it.path), encodeURIComponent(file.name)));
    const sure =
      !there ||
      (await ask({ title: `Replace “${file.name}”?`, text: "A file with this name already exists in this folder.", button: "Replace", danger: false }));
    if (sure) uploads.add(where, file, Boolean(there));
  }
}

// -- the page ----------------------------------------------------------------------------------

document.addEventListener("click", (event) => {
  const link = event.target.closest("[data-go]");
  if (link && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
    event.preventDefault();
    show(link.dataset.go, true);
  }
  const what = event.target.closest("[data-do]")?.dataset.do;
  if (what === "upload") find("input").click();
  if (what === "folder") makeFolder();
  if (what === "refresh") show(folder);
});

find("input").addEventListener("change", (event) => {
  upload([...event.target.files]);
  event.target.value = "";
});

const drop = find("drop");
let inward = 0; // moving over a child leaves its parent
drop.addEventListener("dragenter", () => drop.classList.toggle("dropping", ++inward > 0));
drop.addEventListener("dragleave", () => drop.classList.toggle("dropping", --inward > 0));
drop.addEventListener("dragover", (event) => event.preventDefault());
drop.addEventListener("drop", (event) => {
  event.preventDefault();
  inward = 0;
  drop.classList.remove("dropping");
  upload([...event.dataTransfer.files]);
});

addEventListener("popstate", (event) => show(event.state?.folder ?? HOME));

/** The path in the address, exactly as it stands there: it may hold what is no text. */
const wanted = /[?&]path=([^&]*)/.exec(location.search)?.[1]?.replaceAll("%2F", "/");
if (page.dataset.runs === "yes") show(wanted || HOME);
else find("loading").hidden = true;
document.body.addEventListener("polydev:machine", (event) => {
  if (event.detail.subject !== page.dataset.files) return;
  sleeps = ["hibernating", "hibernated"].includes(event.detail.status);
  const runs = event.detail.status === "running";
  if (runs && page.dataset.runs === "no") location.reload();
});
