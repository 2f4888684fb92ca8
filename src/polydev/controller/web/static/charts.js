// A small chart of one thing over time: an SVG line with an area, and the same in words.

const NS = "http://www.w3.org/2000/svg";
const WIDTH = 600;
const HEIGHT = 120;
const LEAST_SPAN_MS = 5 * 60_000;

/** Draw points `{at, value}` (at in ms, the oldest first) into a figure of machine.html.
 *  `limit` is the top of the chart unless a point lies above; `periodMs` tells gaps from pauses. */
export function draw(figure, points, { name, limit, periodMs, format }) {
  const svg = figure.querySelector("svg");
  const words = figure.querySelector("[data-words]");
  if (points.length === 0) return;
  const last = points[points.length - 1];
  const peak = points.reduce((most, it) => Math.max(most, it.value), 0);
  const top = Math.max(limit, peak) || 1;
  const span = Math.max(LEAST_SPAN_MS, last.at - points[0].at);
  const x = (at) => WIDTH * (1 - (last.at - at) / span);
  const y = (value) => HEIGHT - 2 - (HEIGHT - 4) * (value / top);
  const runs = unbroken(points, 3 * periodMs);
  const line = runs.map((run) => `M${run.map((it) => at(x(it.at), y(it.value))).join("L")}`).join("");
  const area = runs
    .map((run) => `M${at(x(run[0].at), HEIGHT)}L${run.map((it) => at(x(it.at), y(it.value))).join("L")}L${at(x(run[run.length - 1].at), HEIGHT)}Z`)
    .join("");
  svg.replaceChildren(
    shape("line", { class: "chart-limit", x1: 0, x2: WIDTH, y1: y(limit), y2: y(limit) }),
    shape("path", { class: "chart-area", d: area }),
    shape("path", { class: "chart-line", d: line }),
  );
  figure.querySelector("[data-now]").textContent = `${format(last.value)} of ${format(limit)}`;
  const minutes = Math.max(1, Math.round((last.at - points[0].at) / 60_000));
  const told = `Peak ${format(peak)} in the last ${minutes === 1 ? "minute" : `${minutes} minutes`}.`;
  words.textContent = told;
  svg.setAttribute("aria-label", `${name}: ${format(last.value)} of ${format(limit)} now. ${told}`);
}

const at = (x, y) => `${x.toFixed(1)} ${y.toFixed(1)}`;

/** The points in runs without gaps: a machine that did not run has none for a while. */
function unbroken(points, gapMs) {
  const runs = [];
  let before = -Infinity;
  for (const point of points) {
    if (point.at - before > gapMs) runs.push([]);
    runs[runs.length - 1].push(point);
    before = point.at;
  }
  return runs;
}

function shape(kind, attributes) {
  const made = document.createElementNS(NS, kind);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

/** A number of bytes to three digits, in the words of web/formats.py. */
export function size(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (count >= 1000 && unit < units.length - 1) {
    count /= 1024;
    unit += 1;
  }
  const digits = count >= 100 || Number.isInteger(count) ? count.toFixed(0) : count.toFixed(1);
  return `${digits.replace(/\.0$/, "")} ${units[unit]}`;
}
