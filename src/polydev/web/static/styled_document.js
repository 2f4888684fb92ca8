// The document as xterm.js sees it, under a Content-Security-Policy without inline styles.
//
// xterm.js makes <style> elements, and sets `style` attributes for colours. Here the former carry
// the nonce of the page's answer, and the latter are set as properties, which no policy minds. The
// real document, and everything that others make in it, stays as it is.

/** A document for xterm.js' option `documentOverride`. */
export function styledDocument(nonce) {
  const createElement = (name, options) => {
    const made = document.createElement(name, options);
    if (name.toLowerCase() === "style") made.nonce = nonce;
    else made.setAttribute = setAttribute;
    return made;
  };
  return new Proxy(document, {
    get(real, name) {
      if (name === "createElement") return createElement;
      const value = Reflect.get(real, name, real);
      return typeof value === "function" ? value.bind(real) : value;
    },
    set: (real, name, value) => Reflect.set(real, name, value, real),
  });
}

function setAttribute(name, value) {
  if (name === "style") this.style.cssText = value;
  else Element.prototype.setAttribute.call(this, name, value);
}
