// The machine page: usage charts and growing logs. The server renders its head.

import { api } from "../shared/api.js";
import { formatSize } from "../shared/format.js";
import { drawChart } from "./charts.js";

const USAGE_EVERY_MS = 5000;
const LOGS_EVERY_MS = 2500;
const TAIL_BYTES = 64 * 1024;

const page = document.querySelector("[data-machine]");
const base = `/api/vm/${encodeURIComponent(page.dataset.machine)}`;

const formatCores = (value) => {
  const number = value.toFixed(value < 0.095 ? 2 : 1).replace(/\.0+$/, "");
  return `${number} core${number === "1" ? "" : "s"}`;
};

async function updateCharts() {
  const { samples, limits, periodSeconds } = await api("GET", `${base}/usage`);
  const draw = (chart, valueOf, options) => {
    const points = samples.map((it) => ({ at: Date.parse(it.at), value: valueOf(it) }));
    const figure = page.querySelector(`[data-chart="${chart}"]`);
    drawChart(figure, points, { periodMs: periodSeconds * 1000, ...options });
  };
  draw("cpu", (it) => it.cpu, { name: "CPU", limit: limits.cpu, format: formatCores });
  draw("memory", (it) => it.memoryBytes, {
    name: "Memory on the host", limit: limits.memoryBytes, format: formatSize,
  });
}

const followCheckbox = page.querySelector("[data-follow]");

/** Show the end of a log, as text: machines can print anything. */
async function updateLog(details) {
  if (!details.open) return;
  const pre = details.querySelector("pre");
  const response = await fetch(`${base}/${details.dataset.log}?tail_bytes=${TAIL_BYTES}`, { cache: "no-store" });
  if (!response.ok) return;
  const text = (await response.text()) || "The log is empty.";
  if (pre.textContent === text) return;
  pre.textContent = text;
  if (followCheckbox.checked) pre.scrollTop = pre.scrollHeight;
}

/** Run the work now and periodically while the page is visible; returns a function to run it. */
function poll(everyMs, work) {
  let isRunning = false;
  const run = async () => {
    if (document.hidden || isRunning) return;
    isRunning = true;
    try {
      await work();
    } catch {
      // The host is unreachable or the machine deleted; the page's head says so.
    } finally {
      isRunning = false;
    }
  };
  run();
  setInterval(run, everyMs);
  document.addEventListener("visibilitychange", run);
  return run;
}

poll(USAGE_EVERY_MS, updateCharts);
const logs = [...page.querySelectorAll("[data-log]")];
const updateLogs = poll(LOGS_EVERY_MS, () => Promise.all(logs.map(updateLog)));
for (const details of logs) details.addEventListener("toggle", updateLogs);
