/**
 * Keeps the end of the transcript in view, unless the user has scrolled up: then a button shows that
 * there are new messages.
 */

const NEAR_PX = 48;

export class AutoScroll {
  /** `frame` scrolls `content`; `button` appears when new content is out of sight below. */
  constructor(frame, content, button) {
    Object.assign(this, { frame, content, button });
    this.isFollowing = true;
    frame.addEventListener("scroll", () => this.onScroll(), { passive: true });
    button.addEventListener("click", () => this.scrollToEnd());
    new ResizeObserver(() => this.onResize()).observe(content);
    new ResizeObserver(() => this.isFollowing && this.jump()).observe(frame);
  }

  get distance() {
    return this.frame.scrollHeight - this.frame.clientHeight - this.frame.scrollTop;
  }

  onScroll() {
    const isUp = this.frame.scrollTop < this.top - 1;
    this.top = this.frame.scrollTop;
    if (this.distance <= NEAR_PX) this.isFollowing = true;
    else if (isUp) this.isFollowing = false;
    if (this.isFollowing) this.button.hidden = true;
  }

  onResize() {
    if (this.isFollowing) this.jump();
  }

  /** Show the button if new content at the end is out of sight. */
  onNewContent() {
    if (!this.isFollowing) this.button.hidden = false;
  }

  jump() {
    this.frame.scrollTop = this.frame.scrollHeight;
    this.top = this.frame.scrollTop;
  }

  scrollToEnd() {
    this.isFollowing = true;
    this.button.hidden = true;
    this.jump();
  }

  /** Run a change that adds content above, without moving what is in view. */
  preservePosition(change) {
    const toEnd = this.frame.scrollHeight - this.frame.scrollTop;
    change();
    this.frame.scrollTop = this.frame.scrollHeight - toEnd;
    this.top = this.frame.scrollTop;
  }
}
