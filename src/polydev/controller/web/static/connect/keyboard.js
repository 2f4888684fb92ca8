// Input from an on-screen keyboard, which reports few keys and corrects text that it wrote: it types
// into a hidden field, and the changes of the field become key presses.

const BACKSPACE = [0xff08, "Backspace"];
const ENTER = [0xff0d, "Enter"];
const PADDING = "_".repeat(64); // so that backspace has something to delete

export class OnScreenKeyboard {
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
    this.field.value = this.previous = PADDING;
    this.field.setSelectionRange(PADDING.length, PADDING.length);
  }

  changed() {
    const current = this.field.value;
    let same = 0;
    while (same < current.length && same < this.previous.length && current[same] === this.previous[same]) same += 1;
    for (let deleted = this.previous.length - same; deleted > 0; deleted -= 1) this.press(...BACKSPACE);
    this.write(current.slice(same));
    this.previous = current;
    if (current.length < 8 || current.length > 4 * PADDING.length) this.reset();
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

/** X11 keysym of a character: its code for Latin-1, else 0x01000000 plus its code point. */
function keysymOf(character) {
  const point = character.codePointAt(0);
  return point < 0x100 ? point : 0x01000000 + point;
}
