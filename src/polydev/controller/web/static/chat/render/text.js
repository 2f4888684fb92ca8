/**
 * Makes text of machines and models safe to read. Knows no DOM.
 *
 * All text of a chat's events passes through here before it becomes a text node. Characters that
 * change how others are displayed (controls, direction, zero width) become visible names, so that a
 * path or an option looks like what the program gets.
 */

// C0 and C1 controls except tab and newline; direction and width marks; tags; separators.
const INVISIBLE =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffc]|[\u{e0000}-\u{e0fff}]/gu;
const EMOJI_JOINED = /\p{Extended_Pictographic}\ufe0f?\u200d(?=\p{Extended_Pictographic})/gu;
const JOINER = "\ue000";

/** Replace invisible characters by their names, as `⟨U+202E⟩`; newlines and tabs stay. */
export function visible(text) {
  const joined = String(text).replace(EMOJI_JOINED, (pair) => pair.replace("\u200d", JOINER));
  return joined.replace(INVISIBLE, nameOf).replaceAll(JOINER, "\u200d");
}

/** Join the text into one line of at most `limit` characters. */
export function oneLine(text, limit = 200) {
  const line = visible(bounded(String(text ?? ""), limit * 2)).replace(/\s+/g, " ").trim();
  return bounded(line, limit);
}

/** Truncate the text to `limit` characters, with an ellipsis as the last one. */
export function bounded(text, limit) {
  if (text.length <= limit) return text;
  const end = /[\ud800-\udbff]/.test(text[limit - 2]) ? limit - 2 : limit - 1;
  return `${text.slice(0, end)}…`;
}

/** Shorten a path in its middle. */
export function shortPath(path, limit = 120) {
  const line = oneLine(path, 4096);
  if (line.length <= limit) return line;
  const head = Math.floor(limit / 3);
  return `${line.slice(0, head)}…${line.slice(head + 1 - limit)}`;
}

// ECMA-48 sequences: CSI; OSC and other strings with their terminator; two-character sequences.
const SEQUENCES =
  /(?:\u001b\[|\u009b)[0-?]*[ -/]*[@-~]|(?:\u001b[\]PX^_]|[\u0090\u0098\u009d-\u009f])[^\u0007\u001b\u009c]*(?:\u0007|\u001b\\|\u009c)|\u001b[ -/]*[0-~]/g;

/** The text that a terminal would show in the end: no colors, lines overwritten after CR. */
export function terminalText(text) {
  const lines = String(text).replace(SEQUENCES, "").replaceAll("\r\n", "\n").split("\n");
  return visible(lines.map(applyOverwrites).join("\n"));
}

/** `1 file`, `3 files`. */
export function count(number, one, many = `${one}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

function applyOverwrites(line) {
  const last = line.split("\r").findLast((part) => part !== "") ?? "";
  if (!last.includes("\b")) return last;
  const shown = [];
  for (const character of last) character === "\b" ? shown.pop() : shown.push(character);
  return shown.join("");
}

function nameOf(character) {
  return `⟨U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`;
}
