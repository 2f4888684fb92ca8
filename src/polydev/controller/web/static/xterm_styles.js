// Lets xterm.js draw under a Content-Security-Policy without inline styles.
//
// It makes <style> elements, and sets `style` attributes of spans for colours. On the terminal's page
// the former get the nonce of the page's answer, and the latter are set as properties, which no
// policy minds. Its option `documentOverride` would be the place, but its viewport does not heed it.

/** From here on, elements that scripts of this page make are allowed their styles. */
export function allowStyles(nonce) {
  const createElement = document.createElement.bind(document);
  document.createElement = (name, options) => {
    const made = createElement(name, options);
    if (name === "style") made.nonce = nonce;
    else if (name === "span") made.setAttribute = setAttribute;
    return made;
  };
}

function setAttribute(name, value) {
  if (name === "style") this.style.cssText = value;
  else Element.prototype.setAttribute.call(this, name, value);
}
