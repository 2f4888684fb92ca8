// A line chart of one value over time, as SVG with a text alternative.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 600;
const HEIGHT = 120;
const MIN_SPAN_MS = 5 * 60_000;

/** Draw points `{at, value}` (`at` in ms, oldest first) into a figure of machine/page.html.
 *  `limit` is the top of the chart unless a point is higher, since the host measures the hypervisor
 *  too; longer pauses than `periodMs` are gaps. */
export function drawChart(figure, points, { name, limit, periodMs, format }) {
  const svg = figure.querySelector("svg");
  const summary = figure.querySelector("[data-summary]");
  if (points.length === 0) return;
  const last = points[points.length - 1];
  const peak = points.reduce((most, it) => Math.max(most, it.value), 0);
  const top = Math.max(limit, peak) || 1;
  const span = Math.max(MIN_SPAN_MS, last.at - points[0].at);
  const x = (at) => WIDTH * (1 - (last.at - at) / span);
  const y = (value) => HEIGHT - 2 - (HEIGHT - 4) * (value / top);
  const runs = splitAtGaps(points, 3 * periodMs);
  const line = runs.map((run) => `M${run.map((it) => at(x(it.at), y(it.value))).join("L")}`).join("");
  const area = runs
    .map((run) => `M${at(x(run[0].at), HEIGHT)}L${run.map((it) => at(x(it.at), y(it.value))).join("L")}L${at(x(run[run.length - 1].at), HEIGHT)}Z`)
    .join("");
  svg.replaceChildren(
    shape("line", { class: "chart-limit", x1: 0, x2: WIDTH, y1: y(limit), y2: y(limit) }),
    shape("path", { class: "chart-area", d: area }),
    shape("path", { class: "chart-line", d: line }),
  );
  figure.querySelector("[data-now]").textContent = format(last.value);
  const minutes = Math.max(1, Math.round((last.at - points[0].at) / 60_000));
  const period = minutes === 1 ? "minute" : `${minutes} minutes`;
  const text = `Peak ${format(peak)} in the last ${period}. The machine has ${format(limit)}.`;
  summary.textContent = text;
  svg.setAttribute("aria-label", `${name}: ${format(last.value)} now. ${text}`);
}

const at = (x, y) => `${x.toFixed(1)} ${y.toFixed(1)}`;

/** Split the points into runs: a stopped machine has none for a while. */
function splitAtGaps(points, gapMs) {
  const runs = [];
  let previous = -Infinity;
  for (const point of points) {
    if (point.at - previous > gapMs) runs.push([]);
    runs[runs.length - 1].push(point);
    previous = point.at;
  }
  return runs;
}

function shape(kind, attributes) {
  const element = document.createElementNS(SVG, kind);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}
