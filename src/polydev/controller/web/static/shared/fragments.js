// Fragments: parts of a page that the server renders again when they change.
//
// `data-fragment="/fragments/home"` is the part's address. It is fetched after the events in
// `data-refresh-on="session machine"`, every `data-refresh-every` seconds, and immediately with
// `data-load`; these two only for elements of the first page. The new content is morphed in, so that
// the focus and the scroll position stay.

import { Idiomorph } from "../vendor/idiomorph/idiomorph.js";
import { goToSignIn } from "./api.js";
import { KINDS } from "./events.js";
import { updateTimes } from "./format.js";
import { redirect } from "./navigation.js";

const BATCH_MS = 100; // events of one change arrive together
const OWN_PAGE = /^\/(?![\/\\])/; // a path of this site, not `//host`
const fetching = new WeakSet();
const outdated = new WeakSet();
const scheduled = new WeakSet();

/** Fetch a fragment as text; null if the browser leaves the page instead. Throws Error. */
export async function fetchFragment(url) {
  const response = await fetch(url, { cache: "no-store" });
  const target = response.headers.get("Polydev-Redirect");
  if (response.status === 401) goToSignIn();
  else if (target && OWN_PAGE.test(target)) redirect(target);
  else if (response.ok) return response.text();
  else throw new Error(`${url}: ${response.status}`);
  return null;
}

/** Fetch an element's fragment and show it. What changes while it is fetched is fetched again. */
export async function refresh(element) {
  if (fetching.has(element)) return void outdated.add(element);
  fetching.add(element);
  try {
    const html = await fetchFragment(element.dataset.fragment);
    if (html !== null) morph(element, html, { morphStyle: "innerHTML" });
  } catch {
    // Polydev is not responding: the next event tries again.
  } finally {
    fetching.delete(element);
    if (outdated.delete(element)) refresh(element);
  }
}

/** Change an element to match the HTML. */
export function morph(element, html, options) {
  Idiomorph.morph(element, html, options);
  updateTimes(element);
}

function schedule(element) {
  if (scheduled.has(element)) return;
  scheduled.add(element);
  setTimeout(() => {
    scheduled.delete(element);
    if (element.isConnected) refresh(element);
  }, BATCH_MS);
}

function onEvent(kind) {
  const selector = kind === "reset" ? "[data-refresh-on]" : `[data-refresh-on~="${kind}"]`;
  for (const element of document.querySelectorAll(selector)) schedule(element);
}

/** Begin to refresh the page's fragments. */
export function startFragments() {
  for (const kind of KINDS) document.body.addEventListener(`polydev:${kind}`, () => onEvent(kind));
  for (const element of document.querySelectorAll("[data-fragment][data-load]")) refresh(element);
  for (const element of document.querySelectorAll("[data-refresh-every]")) {
    setInterval(() => document.hidden || refresh(element), Number(element.dataset.refreshEvery) * 1000);
  }
}
