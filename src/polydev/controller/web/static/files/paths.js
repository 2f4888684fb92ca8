// Paths in a machine: percent-encoded bytes, as the API takes and returns them.

const INVISIBLE = /[\p{Cc}\p{Cf}\p{Co}\p{Cn}\p{Cs}\p{Zl}\p{Zp}]/gu;

/** A part of a path as text, without characters that are invisible or reverse the direction. */
export function visible(encoded) {
  let text;
  try {
    text = decodeURIComponent(encoded);
  } catch {
    text = encoded; // not UTF-8
  }
  return text.replace(INVISIBLE, "\uFFFD");
}

/** The path of an entry with that name in a folder. */
export const childPath = (folder, name) => `${folder === "/" ? "" : folder}/${encodeURIComponent(name)}`;

export const parentOf = (path) => path.slice(0, Math.max(1, path.lastIndexOf("/")));

export const baseName = (path) => path.slice(path.lastIndexOf("/") + 1);

/** Compare two encoded names, which can be encoded in several ways. */
export const isSameName = (one, other) => visible(one) === visible(other);
