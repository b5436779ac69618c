// What is in an address: events, filters and periods as text, and back.

import { daysAfter, day, time } from "./format.js";

/**
 * @typedef {{ property: string, op: string, values?: (string | number)[] }} Where
 * @typedef {{ event: string | null, where?: Where[] }} Kind an event of a name, null: of any
 * @typedef {{ start: string, end: string, interval: string, zone: string }} Period
 */

export const OPERATORS = {
  is: "is",
  "is not": "is not",
  contains: "contains",
  "does not contain": "does not contain",
  greater: ">",
  "greater or equal": "≥",
  less: "<",
  "less or equal": "≤",
  set: "is set",
  "not set": "is not set",
};
export const NO_VALUES = new Set(["set", "not set"]);
const BY_SIZE = new Set(["greater", "greater or equal", "less", "less or equal", "between"]);

/** @param {string} view @param {Record<string, any>} given */
export function address(view, given) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(given)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== null && one !== undefined && one !== "" && one !== false) {
        query.append(name, typeof one === "object" ? JSON.stringify(one) : String(one));
      }
    }
  }
  return `#${view}?${query}`;
}

/** @param {Kind} kind */
export function writtenKind({ event, where = [] }) {
  if (where.length || event === "" || event?.startsWith("{") || event === "*") {
    return JSON.stringify({ event, ...(where.length ? { where } : {}) });
  }
  return event ?? "*";
}

/** @param {string | null} text @returns {Kind} */
export function readKind(text) {
  if (text === null || text === "*" || text === "") return { event: null };
  if (!text.startsWith("{")) return { event: text };
  const found = parsed(text);
  return { event: found.event ?? null, where: found.where ?? [] };
}

/** @param {string} text @returns {Where} */
export const readWhere = (text) => parsed(text);

function parsed(text) {
  try {
    const found = JSON.parse(text);
    if (found !== null && typeof found === "object") return found;
  } catch {
    // It is said below.
  }
  throw new Error(`address: expected a JSON object, got ${text}`);
}

/** With more filters. @param {Kind} kind @param {Where[]} where @returns {Kind} */
export function filtered(kind, where) {
  const all = [...(kind.where ?? []), ...where];
  return all.length ? { event: kind.event, where: all } : { event: kind.event };
}

/** @param {Kind} kind */
export function labelOf({ event, where = [] }) {
  const name = event ?? "any event";
  return where.length ? `${name} where ${where.map(whereLabel).join(" and ")}` : name;
}

/** @param {Where} where */
export const whereLabel = ({ property, op, values = [] }) =>
  `${property} ${OPERATORS[op] ?? op}${values.length ? ` ${writtenValues(values)}` : ""}`;

/** Values as one line: those with a comma or quote are quoted. @param {(string | number)[]} values */
export const writtenValues = (values) =>
  values
    .map(String)
    .map((one) => (/[",]|^\s|\s$|^$/.test(one) ? `"${one.replaceAll('"', '""')}"` : one))
    .join(", ");

/** The values of a line. @param {string} line @param {string} op */
export function readValues(line, op) {
  const all = line.matchAll(/\s*(?:"((?:[^"]|"")*)"|([^,]*))\s*(?:,|$)/g);
  const found = [...all].flatMap(([, inner, bare]) =>
    inner !== undefined ? [inner.replaceAll('""', '"')] : bare.trim() ? [bare.trim()] : [],
  );
  return BY_SIZE.has(op) ? found.map((one) => (isFinite(Number(one)) ? Number(one) : one)) : found;
}

export const LAST = {
  "24h": "Last 24 hours",
  "7d": "Last 7 days",
  "30d": "Last 30 days",
  "90d": "Last 90 days",
};

/**
 * The period that is asked about: whole days, or hours, up to the newest event.
 * @param {{ last?: string, from?: string, to?: string, interval: string, zone: string }} given
 * @param {{ first: number, last: number }} ends times of the first and newest event, in ms
 * @returns {Period}
 */
export function periodOf({ last, from, to, interval, zone }, ends) {
  if (from && to) return { start: from, end: daysAfter(to, 1), interval, zone };
  if (last?.endsWith("h")) {
    const end = ends.last + 1;
    const start = end - Number(last.slice(0, -1)) * 3600e3;
    return {
      start: new Date(start).toISOString(),
      end: new Date(end).toISOString(),
      interval,
      zone,
    };
  }
  const end = daysAfter(day(ends.last, zone), 1);
  const start = daysAfter(end, -Number((last ?? "30d").slice(0, -1)));
  const oldest = day(ends.first, zone);
  return { start: start < oldest ? oldest : start, end, interval, zone };
}

/** @param {Period} period */
export function periodLabel({ start, end, zone }) {
  const isDay = (text) => text.length === 10;
  if (isDay(start) && isDay(end)) {
    const last = daysAfter(end, -1);
    return `${start}${last === start ? "" : ` to ${last}`} (${zone})`;
  }
  const [from, to] = [start, end].map((one) =>
    isDay(one) ? `${one} 00:00` : time(Date.parse(one), zone),
  );
  return `${from} to ${to} (${zone})`;
}
