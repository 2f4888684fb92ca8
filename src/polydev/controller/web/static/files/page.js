// The files page: shows a folder as the API lists it. Names are set as text only.

import { api, Problem } from "../shared/api.js";
import { formatSize, updateTimes } from "../shared/format.js";
import { confirmDialog, hideProblem, icon, showProblem, toast } from "../shared/ui.js";
import { baseName, childPath, isSameName, parentOf, visible } from "./paths.js";
import { Uploads } from "./uploads.js";

const HOME = "/root";
const page = document.querySelector("[data-files]");
const find = (name) => page.querySelector(`[data-${name}]`);
const base = `/api/vm/${encodeURIComponent(page.dataset.files)}`;
const ICONS = { folder: "folder", file: "file", link: "external", other: "dots" };

let folder = HOME;
let entries = [];
let requestCount = 0;
let isHibernated = false; // the machine resumes with the next request

const uploads = new Uploads({
  base,
  list: find("uploads"),
  limit: Number(page.dataset.limit),
  onDone: (where) => where === folder && show(folder),
});

/** Show a folder; `push` adds it to the browser's history. */
async function show(path, push = false) {
  const request = ++requestCount;
  hideProblem(page);
  if (isHibernated) {
    find("loading-text").textContent = "Resuming the machine…";
    find("loading").hidden = false;
  }
  try {
    const listing = await api("GET", `${base}/files?path=${path}`);
    if (request !== requestCount) return; // another folder was opened since
    folder = listing.path;
    entries = listing.entries;
    const url = `${location.pathname}?path=${folder}`;
    if (push) history.pushState({ folder }, "", url);
    else history.replaceState({ folder }, "", url);
    drawCrumbs();
    drawEntries(listing.more);
  } catch (problem) {
    report(problem);
  } finally {
    find("loading").hidden = true;
  }
}

function report(problem) {
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
  updateTimes(find("entries"));
}

function row(entry) {
  const element = document.createElement("tr");
  const name = document.createElement("th");
  name.scope = "row";
  name.append(icon(ICONS[entry.kind]), nameOf(entry));
  const bytes = document.createElement("td");
  bytes.className = "end numbers muted";
  bytes.textContent = entry.kind === "file" ? formatSize(entry.size) : "";
  const changed = document.createElement("td");
  changed.className = "muted changed";
  const time = document.createElement("time");
  time.dateTime = entry.modifiedAt;
  time.dataset.time = "relative";
  changed.append(time);
  const actions = document.createElement("td");
  actions.className = "end";
  if (entry.kind === "file" || entry.kind === "link") actions.append(download(entry));
  // The API does not change the top folder.
  if (folder !== "/") {
    actions.append(button(entry, "rename", "edit", "Rename"), button(entry, "remove", "trash", "Delete"));
  }
  element.append(name, bytes, changed, actions);
  return element;
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

function button(entry, action, iconName, label) {
  const element = document.createElement("button");
  element.className = "button quiet icon-only small";
  element.type = "button";
  element.title = label;
  element.setAttribute("aria-label", `${label} ${entry.name}`);
  element.append(icon(iconName));
  element.addEventListener("click", () => (action === "rename" ? rename(entry) : remove(entry)));
  return element;
}

// -- actions -----------------------------------------------------------------------------------

/** Ask for a name; resolves to null if cancelled. */
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
  const name = await askName("Rename", visible(baseName(entry.path)));
  if (name === null || isSameName(baseName(entry.path), encodeURIComponent(name))) return;
  await change("POST", `files/move?path=${entry.path}&to=${childPath(parentOf(entry.path), name)}`);
}

async function createFolder() {
  const name = await askName("New folder", "");
  if (name !== null) await change("POST", `files/folder?path=${childPath(folder, name)}`);
}

async function remove(entry) {
  const isFolder = entry.kind === "folder";
  const confirmed = await confirmDialog({
    title: `Delete ${isFolder ? "folder " : ""}“${entry.name}”?`,
    text: isFolder ? "This permanently deletes the folder and everything in it." : "This permanently deletes the file.",
    button: "Delete",
  });
  if (confirmed) await change("DELETE", `files?path=${entry.path}${isFolder ? "&withContent=true" : ""}`, "Deleted");
}

async function change(method, query, message = "") {
  try {
    await api(method, `${base}/${query}`);
    if (message) toast(message);
    await show(folder);
  } catch (problem) {
    report(problem);
  }
}

async function upload(files) {
  const where = folder;
  for (const file of files) {
    const existing = entries.find((it) => isSameName(baseName(it.path), encodeURIComponent(file.name)));
    const confirmed =
      !existing ||
      (await confirmDialog({ title: `Replace “${file.name}”?`, text: "A file with this name already exists in this folder.", button: "Replace", danger: false }));
    if (confirmed) uploads.add(where, file, Boolean(existing));
  }
}

// -- the page ----------------------------------------------------------------------------------

document.addEventListener("click", (event) => {
  const link = event.target.closest("[data-go]");
  if (link && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
    event.preventDefault();
    show(link.dataset.go, true);
  }
  const action = event.target.closest("[data-do]")?.dataset.do;
  if (action === "upload") find("input").click();
  if (action === "folder") createFolder();
  if (action === "refresh") show(folder);
});

find("input").addEventListener("change", (event) => {
  upload([...event.target.files]);
  event.target.value = "";
});

const drop = find("drop");
let depth = 0; // dragging over a child leaves its parent
drop.addEventListener("dragenter", () => drop.classList.toggle("dropping", ++depth > 0));
drop.addEventListener("dragleave", () => drop.classList.toggle("dropping", --depth > 0));
drop.addEventListener("dragover", (event) => event.preventDefault());
drop.addEventListener("drop", (event) => {
  event.preventDefault();
  depth = 0;
  drop.classList.remove("dropping");
  upload([...event.dataTransfer.files]);
});

addEventListener("popstate", (event) => show(event.state?.folder ?? HOME));

/** The path in the address, still encoded: it may not be valid UTF-8. */
const initialPath = /[?&]path=([^&]*)/.exec(location.search)?.[1]?.replaceAll("%2F", "/");
if (page.dataset.runs === "yes") show(initialPath || HOME);
else find("loading").hidden = true;
document.body.addEventListener("polydev:machine", (event) => {
  if (event.detail.subject !== page.dataset.files) return;
  isHibernated = ["hibernating", "hibernated"].includes(event.detail.status);
  const runs = event.detail.status === "running";
  if (runs && page.dataset.runs === "no") location.reload();
});
