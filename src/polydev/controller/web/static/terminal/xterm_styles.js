// Lets xterm.js draw under a Content-Security-Policy without inline styles.
//
// xterm.js creates <style> elements and sets `style` attributes of spans. On this page the elements
// get the nonce of the response, and the attributes are set as properties, which the policy allows.
// The option `documentOverride` is no alternative, since xterm.js' viewport ignores it.

/** Allow styles of the elements that this page's scripts create from now on. */
export function allowStyles(nonce) {
  const createElement = document.createElement.bind(document);
  document.createElement = (name, options) => {
    const element = createElement(name, options);
    if (name === "style") element.nonce = nonce;
    else if (name === "span") element.setAttribute = setAttribute;
    return element;
  };
}

function setAttribute(name, value) {
  if (name === "style") this.style.cssText = value;
  else Element.prototype.setAttribute.call(this, name, value);
}
