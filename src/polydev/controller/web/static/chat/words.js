/**
 * What machines and models say, as text that can be looked at without being deceived.
 *
 * Everything that comes out of a chat's events passes through here before it becomes a text node.
 * Characters that change how other characters are read (controls, direction, zero width) become
 * visible names, so that a path or an option says to the eye what it says to the program.
 * Knows no DOM.
 */

// C0 and C1 controls but tab and newline; marks of direction and width; tags; separators.
const UNSEEN =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffc]|[\u{e0000}-\u{e0fff}]/gu;
const EMOJI_JOINED = /\p{Extended_Pictographic}\ufe0f?\u200d(?=\p{Extended_Pictographic})/gu;
const JOINER = "\ue000";

/** The text with every unseen character named, as `⟨U+202E⟩`. Newlines and tabs stay. */
export function visible(text) {
  const kept = String(text).replace(EMOJI_JOINED, (pair) => pair.replace("\u200d", JOINER));
  return kept.replace(UNSEEN, named).replaceAll(JOINER, "\u200d");
}

/** One line of at most so many characters: for titles, paths, names of options. */
export function oneLine(text, limit = 200) {
  const line = visible(bounded(String(text ?? ""), limit * 2)).replace(/\s+/g, " ").trim();
  return bounded(line, limit);
}

/** The text cut to so many characters, with an ellipsis in the last one's place. */
export function bounded(text, limit) {
  if (text.length <= limit) return text;
  const end = /[\ud800-\udbff]/.test(text[limit - 2]) ? limit - 2 : limit - 1;
  return `${text.slice(0, end)}…`;
}

/** A path whose end is kept: what is left out stands in its middle. */
export function shortPath(path, limit = 120) {
  const line = oneLine(path, 4096);
  if (line.length <= limit) return line;
  const head = Math.floor(limit / 3);
  return `${line.slice(0, head)}…${line.slice(head + 1 - limit)}`;
}

// Sequences of ECMA-48: CSI; OSC and the other strings with their terminator; two-character ones.
const SEQUENCES =
  /(?:\u001b\[|\u009b)[0-?]*[ -/]*[@-~]|(?:\u001b[\]PX^_]|[\u0090\u0098\u009d-\u009f])[^\u0007\u001b\u009c]*(?:\u0007|\u001b\\|\u009c)|\u001b[ -/]*[0-~]/g;

/** What a terminal would have been left showing, as text: no colours, lines overwritten by CR. */
export function terminalText(text) {
  const lines = String(text).replace(SEQUENCES, "").replaceAll("\r\n", "\n").split("\n");
  return visible(lines.map(overwritten).join("\n"));
}

/** `1 file`, `3 files`. */
export function count(number, one, many = `${one}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

function overwritten(line) {
  const after = line.split("\r").findLast((part) => part !== "") ?? "";
  if (!after.includes("\b")) return after;
  const kept = [];
  for (const character of after) character === "\b" ? kept.pop() : kept.push(character);
  return kept.join("");
}

function named(character) {
  return `⟨U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`;
}
