/**
 * Creates elements without HTML: strings become text nodes, attributes are set by name.
 */

import { copy, icon } from "../../shared/ui.js";

/**
 * An element. `attributes`: `class`, `dataset` ({}), `on` ({event: listener}), booleans, or text.
 * Children: nodes, texts, or nothing (null, undefined, false).
 */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "dataset") Object.assign(element.dataset, value);
    else if (name === "on") listen(element, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null && child !== false));
  return element;
}

/** Set the text only if it differs, so that screen readers and layout see no change. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A button that copies the result of `text()`. */
export function copyButton(text, label) {
  const attributes = { type: "button", class: "copy", "aria-label": label, title: label };
  return el("button", { ...attributes, on: { click: () => copy(text()) } }, icon("copy"));
}

function listen(element, listeners) {
  for (const [name, listener] of Object.entries(listeners)) element.addEventListener(name, listener);
}
