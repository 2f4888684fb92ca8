// Navigation that a script starts.
//
// A second navigation aborts the first and starts over. Several answers and events can report the
// same end of a page, so only the first of them redirects. A user's own action always navigates.

let isLeaving = false;

/** Go where the user's action leads. */
export function go(url) {
  isLeaving = true;
  location.assign(url);
}

/** Leave a page that cannot go on, unless the browser leaves it already. */
export function redirect(url) {
  if (!isLeaving) go(url);
}

// The browser may show the same page again, from its cache.
addEventListener("pageshow", ({ persisted }) => {
  if (persisted) isLeaving = false;
});
