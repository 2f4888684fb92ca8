/**
 * The transcript on the page: turns in order, drawn at most once a frame, and told to those who
 * listen when something is finished, not piece by piece.
 */

import { el, setText } from "./dom.js";
import { TurnView } from "./turn.js";

const SHARE = 3; // drawing may take one part in so many of the time

export class Log {
  /** `spoken` is a live region; `page` is given to the turns. */
  constructor({ element, spoken, follow, page }) {
    Object.assign(this, { element, spoken, follow, page });
    this.views = new Map(); // number -> TurnView
    this.stale = new Set();
    this.told = new Set(); // entries and ends that were spoken, or were there before
    this.quiet = true; // until what is stored is there
    this.drawFrom = 0;
  }

  /** These turns changed. */
  changed(turns) {
    for (const turn of turns) this.stale.add(turn);
    if (this.stale.size) this.frame ??= requestAnimationFrame((now) => this.tick(now));
  }

  tick(now) {
    this.frame = null;
    if (now < this.drawFrom) return this.changed([]);
    const started = performance.now();
    this.draw();
    this.page.drawn();
    const took = performance.now() - started;
    this.drawFrom = took > 8 ? performance.now() + took * SHARE : 0;
  }

  draw() {
    const turns = [...this.stale];
    this.stale.clear();
    for (const turn of turns) this.view(turn).update();
    this.speak(turns);
  }

  /** Draw turns from before what is shown, and leave in place what is looked at. */
  drawBefore(turns) {
    for (const turn of turns) this.remember(turn);
    this.follow.keeping(() => turns.forEach((turn) => this.view(turn).update()));
  }

  view(turn) {
    const known = this.views.get(turn.number);
    if (known) return known;
    const view = new TurnView(turn, this.page);
    const later = [...this.views.values()].filter((it) => it.turn.number > turn.number);
    const next = later.reduce((one, it) => (one && one.turn.number < it.turn.number ? one : it), null);
    this.views.set(turn.number, view);
    this.element.insertBefore(view.element, next?.element ?? this.element.querySelector(".at-end"));
    return view;
  }

  speak(turns) {
    if (this.quiet) return turns.forEach((turn) => this.remember(turn));
    for (const turn of turns) {
      for (const entry of turn.entries) {
        if (entry.done && !this.told.has(entry)) this.say(TurnView.words(entry));
        if (entry.done) this.told.add(entry);
      }
      if (turn.ended && !this.told.has(turn)) this.say(TurnView.wordsOfEnd(turn, this.page));
      if (turn.ended) this.told.add(turn);
    }
  }

  remember(turn) {
    turn.entries.filter((entry) => entry.done).forEach((entry) => this.told.add(entry));
    if (turn.ended) this.told.add(turn);
  }

  say(words) {
    if (!words) return;
    this.spoken.append(el("p", {}, words));
    while (this.spoken.children.length > 5) this.spoken.firstChild.remove();
  }

  /** What stands below the last turn while it goes on, or "". */
  busy(words) {
    const line = this.element.querySelector(".at-end");
    setText(line.querySelector("[data-busy]"), words);
    line.classList.toggle("busy", words !== "");
  }

  /** The card that is waited for. */
  asking(entry) {
    for (const view of this.views.values()) {
      const card = entry && view.views.get(entry.key);
      if (card) return card;
    }
    return null;
  }
}
