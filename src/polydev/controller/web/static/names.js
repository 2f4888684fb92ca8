// Names in a machine: bytes, percent-encoded, as the API takes and gives them in paths.

const UNSEEN = /[\p{Cc}\p{Cf}\p{Co}\p{Cn}\p{Cs}\p{Zl}\p{Zp}]/gu;

/** A part of a path for people's eyes: what would turn text around, or is no text, is taken out. */
export function visible(encoded) {
  let text;
  try {
    text = decodeURIComponent(encoded);
  } catch {
    text = encoded; // not UTF-8
  }
  return text.replace(UNSEEN, "\uFFFD");
}

/** The path of something of that name in a folder. */
export const inside = (folder, name) => `${folder === "/" ? "" : folder}/${encodeURIComponent(name)}`;

export const parentOf = (path) => path.slice(0, Math.max(1, path.lastIndexOf("/")));

export const lastOf = (path) => path.slice(path.lastIndexOf("/") + 1);

/** A path as the API gives it: the same name is written in many ways, and compared in one. */
export const sameName = (one, other) => visible(one) === visible(other);
