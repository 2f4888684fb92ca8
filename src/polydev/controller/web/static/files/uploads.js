// Uploads files to a machine, one after another, with progress. Uses XMLHttpRequest, since fetch
// reports no progress of a request.

import { meta, Problem } from "../shared/api.js";
import { formatSize } from "../shared/format.js";
import { icon } from "../shared/ui.js";
import { childPath } from "./paths.js";

export class Uploads {
  /** `list` is the <ul> of uploads; `onDone(folder)` is called after each. */
  constructor({ base, list, limit, onDone }) {
    Object.assign(this, { base, list, limit, onDone });
    this.queue = [];
    this.busy = false;
  }

  add(folder, file, replace) {
    const row = this.row(file);
    if (file.size > this.limit) return this.fail(row, `The file is larger than ${formatSize(this.limit)}.`);
    this.queue.push({ folder, file, replace, row });
    this.next();
  }

  async next() {
    if (this.busy || this.queue.length === 0) return;
    this.busy = true;
    const { folder, file, replace, row } = this.queue.shift();
    try {
      if (!row.isConnected) return;
      await this.send(`${childPath(folder, file.name)}${replace ? "&replace=true" : ""}`, file, row);
      row.remove();
      this.list.hidden = this.list.childElementCount === 0;
      this.onDone(folder);
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
    request.setRequestHeader("X-CSRF-Token", meta("csrf-token"));
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.setRequestHeader("Accept", "application/json");
    row.querySelector("button").onclick = () => request.abort();
    request.upload.onprogress = ({ loaded }) => this.showProgress(row, loaded, file.size);
    return new Promise((resolve, reject) => {
      request.onload = () => {
        if (request.status < 300) return resolve();
        let body = {};
        try {
          body = JSON.parse(request.responseText);
        } catch {
          // A proxy may send any content.
        }
        reject(new Problem(request.status, body));
      };
      request.onerror = () => reject(new Problem(0, { detail: "The connection was lost.", hint: "Try again." }));
      request.onabort = () => reject(new Problem(0, { detail: "Cancelled." }));
      request.send(file);
    });
  }

  showProgress(row, loaded, total) {
    const progress = row.querySelector("progress");
    progress.max = total || 1;
    progress.value = total ? loaded : 1;
    row.querySelector("[data-upload-progress]").textContent = `${formatSize(loaded)} of ${formatSize(total)}`;
  }

  row(file) {
    const row = document.createElement("li");
    const name = document.createElement("span");
    const progressText = document.createElement("span");
    const progress = document.createElement("progress");
    const cancel = document.createElement("button");
    name.className = "clip";
    name.textContent = file.name;
    progressText.className = "small muted numbers";
    progressText.dataset.uploadProgress = "";
    progressText.textContent = "Waiting";
    progress.className = "meter";
    progress.setAttribute("aria-label", `Upload of ${file.name}`);
    progress.max = file.size || 1;
    progress.value = 0;
    cancel.className = "button quiet icon-only small";
    cancel.type = "button";
    cancel.setAttribute("aria-label", `Cancel upload of ${file.name}`);
    cancel.append(icon("cross"));
    cancel.onclick = () => row.remove();
    row.append(name, progressText, progress, cancel);
    this.list.append(row);
    this.list.hidden = false;
    return row;
  }

  fail(row, message) {
    row.classList.add("failed");
    row.querySelector("progress").remove();
    const text = row.querySelector("[data-upload-progress]");
    text.textContent = message.trim();
    text.setAttribute("role", "alert");
    const close = row.querySelector("button");
    close.setAttribute("aria-label", "Dismiss");
    close.onclick = () => {
      row.remove();
      this.list.hidden = this.list.childElementCount === 0;
    };
  }
}
