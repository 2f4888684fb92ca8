/**
 * The transcript on the page: renders changed turns at most once per frame, and announces finished
 * entries to screen readers.
 */

import { el, setText } from "./render/dom.js";
import { TurnView } from "./render/turn.js";

const IDLE_FACTOR = 3; // pause this many times as long as rendering took

export class TranscriptView {
  /** `announcements` is a live region; `page` is passed to the turns. */
  constructor({ element, announcements, autoScroll, page }) {
    Object.assign(this, { element, announcements, autoScroll, page });
    this.views = new Map(); // number -> TurnView
    this.stale = new Set();
    this.announced = new Set(); // entries and turns
    this.isQuiet = true; // until the stored events are loaded
    this.nextRenderAt = 0;
  }

  /** Render these turns in the next frame. */
  markChanged(turns) {
    for (const turn of turns) this.stale.add(turn);
    if (this.stale.size) this.frame ??= requestAnimationFrame((now) => this.tick(now));
  }

  tick(now) {
    this.frame = null;
    if (now < this.nextRenderAt) return this.markChanged([]);
    const started = performance.now();
    this.render();
    this.page.onRendered();
    const took = performance.now() - started;
    this.nextRenderAt = took > 8 ? performance.now() + took * IDLE_FACTOR : 0;
  }

  render() {
    const turns = [...this.stale];
    this.stale.clear();
    for (const turn of turns) this.viewOf(turn).update();
    this.announce(turns);
  }

  /** Render earlier turns above, without moving what is in view. */
  renderBefore(turns) {
    for (const turn of turns) this.markAnnounced(turn);
    this.autoScroll.preservePosition(() => turns.forEach((turn) => this.viewOf(turn).update()));
  }

  viewOf(turn) {
    const known = this.views.get(turn.number);
    if (known) return known;
    const view = new TurnView(turn, this.page);
    const later = [...this.views.values()].filter((it) => it.turn.number > turn.number);
    const next = later.reduce((one, it) => (one && one.turn.number < it.turn.number ? one : it), null);
    this.views.set(turn.number, view);
    this.element.insertBefore(view.element, next?.element ?? this.element.querySelector(".progress-line"));
    return view;
  }

  announce(turns) {
    if (this.isQuiet) return turns.forEach((turn) => this.markAnnounced(turn));
    for (const turn of turns) {
      for (const entry of turn.entries) {
        if (entry.done && !this.announced.has(entry)) this.speak(TurnView.textOf(entry));
        if (entry.done) this.announced.add(entry);
      }
      if (turn.ended && !this.announced.has(turn)) this.speak(TurnView.endTextOf(turn, this.page));
      if (turn.ended) this.announced.add(turn);
    }
  }

  markAnnounced(turn) {
    turn.entries.filter((entry) => entry.done).forEach((entry) => this.announced.add(entry));
    if (turn.ended) this.announced.add(turn);
  }

  /** Let screen readers say a text. */
  speak(text) {
    if (!text) return;
    this.announcements.append(el("p", {}, text));
    while (this.announcements.children.length > 5) this.announcements.firstChild.remove();
  }

  /** Show progress below the last turn; "" hides it. */
  showProgress(text) {
    const line = this.element.querySelector(".progress-line");
    setText(line.querySelector("[data-progress]"), text);
    line.classList.toggle("busy", text !== "");
  }

  /** Find the card of a permission request; null if it is not shown. */
  cardOf(entry) {
    for (const view of this.views.values()) {
      const card = entry && view.views.get(entry.key);
      if (card) return card;
    }
    return null;
  }
}
