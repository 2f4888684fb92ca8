// Typing with a phone's on-screen keyboard: it writes into a hidden text, changes what it wrote as
// it corrects itself, and tells few keys. So what changed in the text is what was typed.

const BACKSPACE = [0xff08, "Backspace"];
const ENTER = [0xff0d, "Enter"];
const PADDING = "_".repeat(64); // something to delete

export class Typing {
  /** `send(keysym, code, isDown)` sends a key to the machine. */
  constructor(field, send) {
    this.field = field;
    this.send = send;
    field.addEventListener("input", () => this.changed());
    field.addEventListener("keydown", (event) => {
      if (event.key !== "Enter") return;
      event.preventDefault();
      this.press(...ENTER);
    });
    this.reset();
  }

  begin() {
    this.reset();
    this.field.focus({ preventScroll: true });
  }

  reset() {
    this.field.value = this.before = PADDING;
    this.field.setSelectionRange(PADDING.length, PADDING.length);
  }

  changed() {
    const now = this.field.value;
    let same = 0;
    while (same < now.length && same < this.before.length && now[same] === this.before[same]) same += 1;
    for (let gone = this.before.length - same; gone > 0; gone -= 1) this.press(...BACKSPACE);
    this.write(now.slice(same));
    this.before = now;
    if (now.length < 8 || now.length > 4 * PADDING.length) this.reset();
  }

  /** Type a text, key by key. */
  write(text) {
    for (const character of text) {
      if (character === "\n") this.press(...ENTER);
      else this.press(keysymOf(character), null);
    }
  }

  press(keysym, code) {
    this.send(keysym, code, true);
    this.send(keysym, code, false);
  }
}

/** X11's name for a character: Latin-1 is itself, everything else Unicode's number. */
function keysymOf(character) {
  const point = character.codePointAt(0);
  return point < 0x100 ? point : 0x01000000 + point;
}
