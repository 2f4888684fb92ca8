// Sends files into a machine, one after another, each with its progress. fetch cannot tell how far
// a body has gone, so this is XMLHttpRequest.

import { Problem, icon } from "./app.js";
import { size } from "./charts.js";
import { inside } from "./names.js";

const csrf = () => document.querySelector('meta[name="csrf-token"]').content;

export class Uploads {
  /** `list`: the <ul> of what is on its way. `done(path)`: something arrived. */
  constructor({ base, list, limit, done }) {
    Object.assign(this, { base, list, limit, done });
    this.waiting = [];
    this.busy = false;
  }

  add(folder, file, replace) {
    const row = this.row(file);
    if (file.size > this.limit) return this.fail(row, `The file is larger than ${size(this.limit)}.`);
    this.waiting.push({ folder, file, replace, row });
    this.next();
  }

  async next() {
    if (this.busy || this.waiting.length === 0) return;
    this.busy = true;
    const { folder, file, replace, row } = this.waiting.shift();
    try {
      if (!row.isConnected) return;
      await this.send(`${inside(folder, file.name)}${replace ? "&replace=true" : ""}`, file, row);
      row.remove();
      this.list.hidden = this.list.childElementCount === 0;
      this.done(folder);
    } catch (problem) {
      this.fail(row, `${problem.message} ${problem.hint ?? ""}`);
    } finally {
      this.busy = false;
      this.next();
    }
  }

  send(query, file, row) {
    const request = new XMLHttpRequest();
    request.open("PUT", `${this.base}/files/content?path=${query}`);
    request.setRequestHeader("X-CSRF-Token", csrf());
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.setRequestHeader("Accept", "application/json");
    row.querySelector("button").onclick = () => request.abort();
    request.upload.onprogress = ({ loaded }) => this.tell(row, loaded, file.size);
    return new Promise((resolve, reject) => {
      request.onload = () => {
        if (request.status < 300) return resolve();
        let told = {};
        try {
          told = JSON.parse(request.responseText);
        } catch {
          // A proxy in between may answer anything.
        }
        reject(new Problem(request.status, told));
      };
      request.onerror = () => reject(new Problem(0, { detail: "The connection was lost.", hint: "Try again." }));
      request.onabort = () => reject(new Problem(0, { detail: "Cancelled." }));
      request.send(file);
    });
  }

  tell(row, loaded, whole) {
    const progress = row.querySelector("progress");
    progress.max = whole || 1;
    progress.value = whole ? loaded : 1;
    row.querySelector("[data-how-far]").textContent = `${size(loaded)} of ${size(whole)}`;
  }

  row(file) {
    const row = document.createElement("li");
    const name = document.createElement("span");
    const howFar = document.createElement("span");
    const progress = document.createElement("progress");
    const cancel = document.createElement("button");
    name.className = "clip";
    name.textContent = file.name;
    howFar.className = "small muted numbers";
    howFar.dataset.howFar = "";
    howFar.textContent = "Waiting";
    progress.className = "meter";
    progress.setAttribute("aria-label", `Upload of ${file.name}`);
    progress.max = file.size || 1;
    progress.value = 0;
    cancel.className = "button quiet icon-only small";
    cancel.type = "button";
    cancel.setAttribute("aria-label", `Cancel upload of ${file.name}`);
    cancel.append(icon("cross"));
    cancel.onclick = () => row.remove();
    row.append(name, howFar, progress, cancel);
    this.list.append(row);
    this.list.hidden = false;
    return row;
  }

  fail(row, words) {
    row.classList.add("failed");
    row.querySelector("progress").remove();
    const told = row.querySelector("[data-how-far]");
    told.textContent = words.trim();
    told.setAttribute("role", "alert");
    const close = row.querySelector("button");
    close.setAttribute("aria-label", "Dismiss");
    close.onclick = () => {
      row.remove();
      this.list.hidden = this.list.childElementCount === 0;
    };
  }
}
