// The explorer: a form for a question, its answer below, and the code that asks the same. Everything
// that is chosen is in the address; to ask is to go there.

import {
  LAST,
  address,
  periodLabel,
  periodOf,
  readKind,
  readWhere,
  writtenKind,
} from "./address.js";
import { ask, askText } from "./api.js";
import { h } from "./dom.js";
import { check, choice, filters, kinds, oneKind, pairs, property, text } from "./fields.js";
import { length } from "./format.js";
import { known } from "./store.js";
import { nothing, waiting } from "./waiting.js";

const ZONE = Intl.DateTimeFormat().resolvedOptions().timeZone || "UTC";

/** What is chosen in an address. @param {import("./questions.js").QuestionOf} question */
function chosenIn(given, question) {
  const chosen = { where: given.getAll("where").map(readWhere) };
  for (const { name, kind, initial } of question.fields) {
    const text = given.get(name);
    if (kind === "kinds")
      chosen[name] = given.has(name) ? given.getAll(name).map(readKind) : initial;
    else if (kind === "kind") chosen[name] = text === null ? initial : readKind(text);
    else if (kind === "number") chosen[name] = Number(text ?? initial);
    else if (kind === "check") chosen[name] = text === "true";
    else chosen[name] = text ?? initial ?? "";
  }
  const last = given.get("last") ?? (given.has("from") ? "" : "30d");
  const interval =
    given.get("interval") ??
    (last.endsWith("h") && question.intervals.includes("hour") ? "hour" : "day");
  const time = {
    last,
    from: given.get("from") ?? "",
    to: given.get("to") ?? "",
    interval,
    zone: given.get("zone") ?? "UTC",
  };
  return { chosen, time };
}

/** The fields of a question, by name. */
function fieldsOf(question, chosen, of) {
  const made = /** @type {Record<string, any>} */ ({});
  for (const { name, kind, label, options, attributes } of question.fields) {
    const value = chosen[name];
    if (kind === "kinds")
      made[name] = kinds(
        label,
        value.length ? value : of.names.slice(0, 2).map((event) => ({ event })),
        of,
      );
    else if (kind === "kind") made[name] = oneKind(label, value, of);
    else if (kind === "choice") made[name] = choice(label, options, value);
    else if (kind === "property") made[name] = property(label, value, of);
    else if (kind === "check") made[name] = check(label, value);
    else
      made[name] = text(label, String(value), {
        ...(kind === "number" ? { type: "number", required: true } : {}),
        ...attributes,
      });
  }
  made.where = filters("Filter all of them", chosen.where, of);
  return made;
}

/** The fields of the time that is asked about. */
function timeFields(time, question) {
  const from = text("From", time.from, { type: "date" });
  const to = text("To", time.to, { type: "date" });
  const show = () => {
    for (const field of [from, to]) {
      field.element.hidden = Boolean(last.read());
      field.element.querySelector("input").required = !last.read();
    }
  };
  const last = choice("Period", [...Object.entries(LAST), ["", "From … to"]], time.last, show);
  show();
  const interval = choice("Interval", pairs(question.intervals), time.interval);
  interval.element.hidden = question.intervals.length < 2;
  const zones = pairs([...new Set(["UTC", ZONE, time.zone])]);
  return { last, from, to, interval, zone: choice("Time zone", zones, time.zone) };
}

/** What is read from fields, as an address has it. */
function written(fields, time, question) {
  const given = {};
  for (const { name, kind, initial } of question.fields) {
    const value = fields[name].read();
    if (kind === "kinds") given[name] = value.map(writtenKind);
    else if (kind === "kind") given[name] = writtenKind(value);
    else if (String(value) !== String(initial ?? "")) given[name] = value;
  }
  const { last, from, to, interval, zone } = Object.fromEntries(
    Object.entries(time).map(([name, field]) => [name, field.read()]),
  );
  return {
    ...given,
    where: fields.where.read(),
    ...(last ? { last } : { from, to }),
    interval,
    zone: zone === "UTC" ? null : zone,
  };
}

/** Code that is fetched when it is looked at. */
function code(title, load) {
  const shown = h("code");
  const details = h(
    "details",
    {
      ontoggle: async () => {
        if (!details.open || shown.textContent) return;
        shown.textContent = "…";
        shown.textContent = await load().catch((error) => error.message);
      },
    },
    h("summary", {}, title),
    h("pre", { tabindex: 0, "aria-label": title }, shown),
  );
  return details;
}

/** @param {string} name @param {import("./questions.js").QuestionOf} question @returns {import("./main.js").View} */
export const explorer = (name, question) => async (main, given, signal) => {
  main.append(h("p", { class: "about" }, question.about));
  const of = await waiting(main, signal, (inner) => known(inner));
  if (!of) return nothing(main, signal);
  const { chosen, time } = chosenIn(given, question);
  const fields = fieldsOf(question, chosen, of);
  const times = timeFields(time, question);
  const plain = question.fields.filter(({ kind }) => kind !== "kinds" && kind !== "kind");
  const wide = question.fields.filter(({ kind }) => kind === "kinds" || kind === "kind");
  const form = h(
    "form",
    {
      class: "question",
      "aria-label": question.title,
      onsubmit: (event) => {
        event.preventDefault();
        const to = address(name, written(fields, times, question));
        if (location.hash === to) dispatchEvent(new HashChangeEvent("hashchange"));
        else location.hash = to;
      },
    },
    h(
      "div",
      { class: "events-of" },
      wide.map(({ name: own }) => fields[own].element),
      h("fieldset", {}, h("legend", {}, "All events"), fields.where.element),
    ),
    h(
      "div",
      { class: "fields" },
      plain.map(({ name: own }) => fields[own].element),
      Object.values(times).map((one) => one.element),
    ),
    h("p", {}, h("button", { class: "main" }, "Ask")),
  );
  if (fields.of) onlyWith(fields);
  const place = h("section", { "aria-label": "Answer" });
  main.append(form, place);
  if (question.fields.some(({ name: own, kind }) => kind === "kinds" && !chosen[own].length))
    return;
  const period = periodOf(
    { ...time, interval: question.intervals.includes(time.interval) ? time.interval : "day" },
    of,
  );
  const parameters = { ...question.given(chosen), period };
  const began = performance.now();
  const answer = await waiting(place, signal, (inner) => ask(question.path, parameters, inner));
  if (!answer) return;
  const programs = [
    code("Python that asks the same", () =>
      askText(question.path, { ...parameters, format: "python" }, signal),
    ),
  ];
  if (question.sql)
    programs.push(
      code("SQL that asks the same", () =>
        askText(question.path, { ...parameters, format: "sql" }, signal),
      ),
    );
  place.append(
    h(
      "p",
      { class: "told", role: "status" },
      `${periodLabel(period)}, answered in ${length(performance.now() - began)}`,
    ),
    ...question.draw(answer, { period, chosen, user: of.roles.user }),
    ...programs,
  );
};

/**
 * The property of a measure is there for those measures that have one.
 * @param {Record<string, any>} fields
 */
function onlyWith({ measure, of }) {
  const show = () => {
    of.element.hidden = !["sum", "mean", "median", "distinct"].includes(measure.read());
  };
  measure.element.addEventListener("change", show);
  show();
}
