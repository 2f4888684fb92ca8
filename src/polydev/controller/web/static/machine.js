// The machine's page: its use as charts, its logs as they grow. Its head is drawn by the server.

import { api } from "./app.js";
import { draw, size } from "./charts.js";

const USAGE_EVERY_MS = 5000;
const LOGS_EVERY_MS = 2500;
const TAIL_BYTES = 64 * 1024;

const page = document.querySelector("[data-machine]");
const base = `/api/vm/${encodeURIComponent(page.dataset.machine)}`;
const cores = (value) => {
  const number = value.toFixed(value < 0.095 ? 2 : 1).replace(/\.0+$/, "");
  return `${number} core${number === "1" ? "" : "s"}`;
};

async function drawUsage() {
  const { samples, limits, periodSeconds } = await api("GET", `${base}/usage`);
  const points = (value) => samples.map((it) => ({ at: Date.parse(it.at), value: value(it) }));
  const periodMs = periodSeconds * 1000;
  draw(page.querySelector('[data-chart="cpu"]'), points((it) => it.cpu), { name: "CPU", limit: limits.cpu, periodMs, format: cores });
  draw(page.querySelector('[data-chart="memory"]'), points((it) => it.memoryBytes), { name: "Memory on the host", limit: limits.memoryBytes, periodMs, format: size });
}

const follows = page.querySelector("[data-follow]");

/** What a machine prints is text, whatever it is: nothing of it becomes part of the page. */
async function drawLog(details) {
  if (!details.open) return;
  const pre = details.querySelector("pre");
  const answer = await fetch(`${base}/${details.dataset.log}?tail_bytes=${TAIL_BYTES}`, { cache: "no-store" });
  if (!answer.ok) return;
  const text = (await answer.text()) || "The log is empty.";
  if (pre.textContent === text) return;
  pre.textContent = text;
  if (follows.checked) pre.scrollTop = pre.scrollHeight;
}

/** Do it again and again while somebody looks; what fails is tried again the next time. */
function repeatedly(everyMs, work) {
  let underway = false;
  const once = async () => {
    if (document.hidden || underway) return;
    underway = true;
    try {
      await work();
    } catch {
      // The host may be away, or the machine gone: its head says so.
    } finally {
      underway = false;
    }
  };
  once();
  setInterval(once, everyMs);
  document.addEventListener("visibilitychange", once);
  return once;
}

repeatedly(USAGE_EVERY_MS, drawUsage);
const logs = [...page.querySelectorAll("[data-log]")];
const look = repeatedly(LOGS_EVERY_MS, () => Promise.all(logs.map(drawLog)));
for (const details of logs) details.addEventListener("toggle", look);
