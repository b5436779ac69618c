// The fields of a question. Each is an element, and what has been chosen in it.

import { NO_VALUES, OPERATORS, readValues, writtenValues } from "./address.js";
import { button, h, newId } from "./dom.js";
import { valuesOf } from "./store.js";

/**
 * @template T
 * @typedef {{ element: any, read: () => T }} Field
 */

/**
 * @param {string} label @param {[string, string][]} options values and what they are called
 * @param {string} value @param {() => void} [listener] @returns {Field<string>}
 */
export function choice(label, options, value, listener) {
  const id = newId();
  const known = options.some(([one]) => one === value) ? options : [...options, [value, value]];
  const select = h(
    "select",
    { id, onchange: listener },
    known.map(([one, told]) => h("option", { value: one, selected: one === value }, told)),
  );
  return {
    element: h("div", { class: "field" }, h("label", { for: id }, label), select),
    read: () => select.value,
  };
}

/** @returns {Field<string>} */
export function text(label, value, attributes = {}) {
  const id = newId();
  const input = h("input", {
    id,
    type: "text",
    autocomplete: "off",
    spellcheck: "false",
    ...attributes,
  });
  input.value = value;
  return {
    element: h("div", { class: "field" }, h("label", { for: id }, label), input),
    read: () => input.value.trim(),
  };
}

/** @returns {Field<boolean>} */
export function check(label, value) {
  const id = newId();
  const input = h("input", { id, type: "checkbox", checked: value });
  return {
    element: h("div", { class: "field check" }, input, h("label", { for: id }, label)),
    read: () => input.checked,
  };
}

/** A property, or none. @returns {Field<string>} */
export const property = (label, value, known, none = "none") =>
  choice(label, [["", none], ...pairs(known.properties)], value);

/** @param {string[]} names @returns {[string, string][]} */
export const pairs = (names) => names.map((name) => [name, name]);

/** One filter, which can be taken away. @returns {Field<import("./address.js").Where | null>} */
function filter(value, known, gone) {
  const list = newId();
  const values = h("datalist", { id: list });
  let listed = "";
  const of = choice("Property", pairs(known.properties), value.property);
  const line = text("Value", writtenValues(value.values ?? []), {
    list,
    placeholder: "value, value",
    onfocus: async () => {
      if (listed === of.read()) return;
      listed = of.read();
      const found = await valuesOf(listed, known, undefined).catch(() => []);
      values.replaceChildren(...found.map((one) => h("option", { value: writtenValues([one]) })));
    },
  });
  const show = () => {
    line.element.hidden = NO_VALUES.has(op.read());
  };
  const op = choice("Condition", Object.entries(OPERATORS), value.op, show);
  show();
  const element = h(
    "li",
    { class: "filter" },
    of.element,
    op.element,
    line.element,
    values,
    button("×", () => gone(element), { "aria-label": "Remove the filter" }),
  );
  return {
    element,
    read: () => {
      const [property, how] = [of.read(), op.read()];
      if (NO_VALUES.has(how)) return { property, op: how };
      const found = readValues(line.read(), how);
      return found.length ? { property, op: how, values: found } : null;
    },
  };
}

/** Any number of filters. @returns {Field<import("./address.js").Where[]>} */
export function filters(label, given, known) {
  let fields = /** @type {Field<any>[]} */ ([]);
  const list = h("ul", { class: "filters" });
  const gone = (element) => {
    fields = fields.filter((one) => one.element !== element);
    element.remove();
    adding.focus();
  };
  const add = (value) => {
    const field = filter(value, known, gone);
    fields.push(field);
    list.append(field.element);
    return field;
  };
  given.forEach(add);
  const adding = button(label, () => {
    add({ property: known.properties[0] ?? "", op: "is" })
      .element.querySelector("select")
      ?.focus();
  });
  return {
    element: h("div", {}, list, adding),
    read: () => fields.map((one) => one.read()).filter(Boolean),
  };
}

/**
 * An event with filters of its own.
 * @param {string} legend @param {import("./address.js").Kind} value
 * @param {import("./store.js").Known} known @param {(element: HTMLElement) => void} [gone]
 * @returns {Field<import("./address.js").Kind>}
 */
function kind(legend, value, known, gone) {
  const names = [...new Set([...known.names, ...(value.event !== null ? [value.event] : [])])];
  // A number stands for each name, for a name may be any text.
  const options = /** @type {[string, string][]} */ ([
    ["any", "any event"],
    ...names.map((name, at) => [String(at), name]),
  ]);
  const chosen = value.event === null ? "any" : String(names.indexOf(value.event));
  const name = choice("Event", options, chosen);
  const own = filters("Filter this event", value.where ?? [], known);
  const element = h(
    "fieldset",
    {},
    h("legend", {}, legend),
    name.element,
    own.element,
    gone && button("×", () => gone(element), { class: "remove", "aria-label": `Remove ${legend}` }),
  );
  return {
    element,
    read: () => {
      const event = name.read() === "any" ? null : names[Number(name.read())];
      const where = own.read();
      return where.length ? { event, where } : { event };
    },
  };
}

/** One event. */
export const oneKind = (label, value, known) => kind(label, value, known);

/** Several events, at least one. @returns {Field<import("./address.js").Kind[]>} */
export function kinds(label, given, known) {
  let fields = /** @type {Field<any>[]} */ ([]);
  const list = h("div", { class: "kinds" });
  const named = () =>
    fields.forEach(({ element }, at) => {
      const legend = `${label} ${at + 1}`;
      element.querySelector("legend").textContent = legend;
      const remove = element.querySelector(".remove");
      remove.setAttribute("aria-label", `Remove ${legend}`);
      remove.hidden = fields.length < 2;
    });
  const gone = (element) => {
    fields = fields.filter((one) => one.element !== element);
    element.remove();
    named();
    adding.focus();
  };
  const add = (value) => {
    const field = kind(label, value, known, gone);
    fields.push(field);
    list.append(field.element);
    named();
    return field;
  };
  given.forEach(add);
  const adding = button(`Add ${label.toLowerCase()}`, () => {
    add({ event: known.names[0] ?? null })
      .element.querySelector("select")
      ?.focus();
  });
  return { element: h("div", {}, list, adding), read: () => fields.map((one) => one.read()) };
}
