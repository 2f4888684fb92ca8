// Times and sizes as text, by the same rules as rendering/filters.py.

const UNITS = [[86400, "day"], [3600, "hour"], [60, "minute"]];
const RELATIVE_LIMIT_S = 30 * 86400;
const DATE = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "long", year: "numeric" });
const EXACT = new Intl.DateTimeFormat("en-GB", { dateStyle: "long", timeStyle: "medium" });

/** "2 minutes ago", "in 3 hours", or the date if that is far away. Times in milliseconds. */
export function relativeTime(then, at = Date.now()) {
  const seconds = (at - then) / 1000;
  if (Math.abs(seconds) >= RELATIVE_LIMIT_S) return `on ${DATE.format(then)}`;
  for (const [length, unit] of UNITS) {
    const count = Math.floor(Math.abs(seconds) / length);
    if (!count) continue;
    const text = `${count} ${unit}${count === 1 ? "" : "s"}`;
    return seconds > 0 ? `${text} ago` : `in ${text}`;
  }
  return seconds >= 0 ? "just now" : "in a moment";
}

/** Show times in the user's time zone, and bring relative ones up to date. */
export function updateTimes(scope = document) {
  for (const element of scope.querySelectorAll("time[data-time]")) {
    const then = Date.parse(element.dateTime);
    if (Number.isNaN(then)) continue;
    const kind = element.dataset.time;
    const text = kind === "relative" ? relativeTime(then) : DATE.format(then);
    if (element.textContent !== text) element.textContent = text;
    element.title = EXACT.format(then);
  }
}

/** A number of bytes with up to three digits: "1.5 GiB". */
export function formatSize(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (count >= 1000 && unit < units.length - 1) {
    count /= 1024;
    unit += 1;
  }
  const digits = count >= 100 || Number.isInteger(count) ? count.toFixed(0) : count.toFixed(1);
  return `${digits.replace(/\.0$/, "")} ${units[unit]}`;
}
