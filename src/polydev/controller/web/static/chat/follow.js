/**
 * Keeps the end of the transcript in view while somebody reads there, and leaves alone whoever
 * reads further up: they get a button that says that there is more.
 */

const NEAR_PX = 48;

export class Follow {
  /** `frame` scrolls `content`; `button` is shown when something new is out of sight below. */
  constructor(frame, content, button) {
    Object.assign(this, { frame, content, button });
    this.following = true;
    frame.addEventListener("scroll", () => this.scrolled(), { passive: true });
    button.addEventListener("click", () => this.toEnd());
    new ResizeObserver(() => this.grown()).observe(content);
    new ResizeObserver(() => this.following && this.jump()).observe(frame);
  }

  get distance() {
    return this.frame.scrollHeight - this.frame.clientHeight - this.frame.scrollTop;
  }

  scrolled() {
    const isUp = this.frame.scrollTop < this.top - 1;
    this.top = this.frame.scrollTop;
    if (this.distance <= NEAR_PX) this.following = true;
    else if (isUp) this.following = false;
    if (this.following) this.button.hidden = true;
  }

  grown() {
    if (this.following) this.jump();
  }

  /** Something new came at the end. */
  told() {
    if (!this.following) this.button.hidden = false;
  }

  jump() {
    this.frame.scrollTop = this.frame.scrollHeight;
    this.top = this.frame.scrollTop;
  }

  toEnd() {
    this.following = true;
    this.button.hidden = true;
    this.jump();
  }

  /** Do something that adds above, and leave in place what is looked at. */
  keeping(change) {
    const before = this.frame.scrollHeight - this.frame.scrollTop;
    change();
    this.frame.scrollTop = this.frame.scrollHeight - before;
    this.top = this.frame.scrollTop;
  }
}
