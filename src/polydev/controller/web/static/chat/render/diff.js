/**
 * Line diff of two texts: hunks with context, as `diff -u` prints them. Knows no DOM.
 *
 * Myers' greedy algorithm between the common beginning and the common end. If the texts differ too
 * much, the result removes all old lines and adds all new ones.
 */

const CONTEXT = 3;
const MAX_EDITS = 1000;

/**
 * Hunks, and the number of added and removed lines. `oldText` is null for a new file.
 * A line: {sign: " " | "+" | "-", text, old, new (line numbers or null), hasNoNewline}.
 */
export function diff(oldText, newText) {
  const before = linesOf(oldText ?? "");
  const after = linesOf(newText ?? "");
  const edits = compare(before, after);
  const lines = numbered(edits, before, after);
  return {
    hunks: hunksOf(lines),
    added: edits.filter((edit) => edit === "+").length,
    removed: edits.filter((edit) => edit === "-").length,
  };
}

function linesOf(text) {
  if (text === "") return [];
  const lines = text.split("\n");
  if (lines.at(-1) === "") lines.pop();
  else lines[lines.length - 1] += "\0"; // a line without newline differs from one with it
  return lines.every((line) => /\r\0?$/.test(line)) ? lines.map((it) => it.replace("\r", "")) : lines;
}

/** The sign of each line of the result. */
function compare(before, after) {
  let start = 0;
  while (start < before.length && start < after.length && before[start] === after[start]) start++;
  let end = 0;
  const most = Math.min(before.length, after.length) - start;
  while (end < most && before.at(-1 - end) === after.at(-1 - end)) end++;
  const old = before.slice(start, before.length - end);
  const current = after.slice(start, after.length - end);
  const middle = myers(old, current) ?? [...old.map(() => "-"), ...current.map(() => "+")];
  return [...Array(start).fill(" "), ...middle, ...Array(end).fill(" ")];
}

/** The shortest edit script, or null if it is too long. Source: Myers 1986, figure 2. */
function myers(old, current) {
  const most = Math.min(old.length + current.length, MAX_EDITS);
  const furthest = new Int32Array(2 * most + 3);
  const trace = [];
  for (let d = 0; d <= most; d++) {
    trace.push(furthest.slice(most + 1 - d - 1, most + 1 + d + 2));
    for (let k = -d; k <= d; k += 2) {
      const at = most + 1 + k;
      const down = k === -d || (k !== d && furthest[at - 1] < furthest[at + 1]);
      let x = down ? furthest[at + 1] : furthest[at - 1] + 1;
      while (x < old.length && x - k < current.length && old[x] === current[x - k]) x++;
      furthest[at] = x;
      if (x >= old.length && x - k >= current.length) return backtrack(trace, old.length, current.length);
    }
  }
  return null;
}

function backtrack(trace, oldLength, newLength) {
  const edits = [];
  let x = oldLength;
  let y = newLength;
  for (let d = trace.length - 1; d >= 0; d--) {
    const furthest = (k) => trace[d][k + d + 1];
    const k = x - y;
    const down = k === -d || (k !== d && furthest(k - 1) < furthest(k + 1));
    const fromX = d === 0 ? 0 : furthest(down ? k + 1 : k - 1);
    const fromY = d === 0 ? 0 : fromX - (down ? k + 1 : k - 1);
    while (x > fromX && y > fromY) {
      edits.push(" ");
      x--;
      y--;
    }
    if (d > 0) edits.push(down ? "+" : "-");
    x = fromX;
    y = fromY;
  }
  return edits.reverse();
}

function numbered(edits, before, after) {
  let old = 0;
  let now = 0;
  return edits.map((sign) => {
    const line = sign === "+" ? after[now] : before[old];
    return {
      sign,
      text: line.endsWith("\0") ? line.slice(0, -1) : line,
      hasNoNewline: line.endsWith("\0"),
      old: sign === "+" ? null : ++old,
      new: sign === "-" ? null : ++now,
    };
  });
}

function hunksOf(lines) {
  const hunks = [];
  let reach = -1;
  lines.forEach((line, at) => {
    if (line.sign === " ") return;
    const from = Math.max(at - CONTEXT, reach + 1);
    if (reach < 0 || from > reach + 1) hunks.push([]);
    const upTo = Math.min(at + CONTEXT, lines.length - 1);
    for (let i = Math.max(from, reach + 1); i <= upTo; i++) hunks.at(-1).push(lines[i]);
    reach = Math.max(reach, upTo);
  });
  return hunks.map((its) => ({ header: header(its), lines: its }));
}

function header(lines) {
  const range = (side) => {
    const numbers = lines.map((line) => line[side]).filter((number) => number !== null);
    return numbers.length === 1 ? `${numbers[0]}` : `${numbers[0] ?? 0},${numbers.length}`;
  };
  return `@@ -${range("old")} +${range("new")} @@`;
}
