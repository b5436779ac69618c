// Elements, made of names, attributes and text: nothing that comes from data is read as HTML.

/** @typedef {Node | string | number | null | undefined | false} Child */

/**
 * @param {Element} element
 * @param {Record<string, any>} attributes on…: a listener; null and false: none; true: empty
 * @param {(Child | Child[])[]} children
 */
function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat()) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return element;
}

/**
 * An element of HTML.
 * @param {string} name @param {Record<string, any>} [attributes] @param {...(Child | Child[])} children
 * @returns {any}
 */
export const h = (name, attributes = {}, ...children) =>
  filled(document.createElement(name), attributes, children);

/** An element of SVG, likewise. @returns {any} */
export const s = (name, attributes = {}, ...children) =>
  filled(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);

/** @param {Child} label @param {() => void} onclick */
export const button = (label, onclick, attributes = {}) =>
  h("button", { type: "button", onclick, ...attributes }, label);

let ids = 0;
/** An id that no other element has. */
export const newId = () => `id-${++ids}`;

/**
 * A table of text. Cells may be elements.
 * @param {string} caption @param {string[]} names @param {Child[][]} rows
 * @param {Set<number>} [numbers] columns that are aligned right
 */
export function table(caption, names, rows, numbers = new Set()) {
  const right = (at) => (numbers.has(at) ? "number" : null);
  return h(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    h(
      "table",
      {},
      h("caption", {}, caption),
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          names.map((name, at) => h("th", { scope: "col", class: right(at) }, name)),
        ),
      ),
      h(
        "tbody",
        {},
        rows.map((row) =>
          h(
            "tr",
            {},
            row.map((cell, at) => h("td", { class: right(at) }, cell)),
          ),
        ),
      ),
    ),
  );
}

/** What went wrong, and a way to try again. @param {Error} error @param {() => void} [again] */
export function alert(error, again) {
  const title = /** @type {any} */ (error).title ?? "Something went wrong";
  return h(
    "div",
    { class: "alert", role: "alert" },
    h("strong", {}, title),
    h("p", {}, error.message),
    again && button("Try again", again),
  );
}
