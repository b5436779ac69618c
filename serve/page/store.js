// What the page has to know of the data before it asks: roles, names of events, properties, and from
// when to when there are events. It is asked for again after a minute.

import { ask, quoted, sql } from "./api.js";

const HELD_MS = 60_000;
const NAMES_MAX = 1000;
const SAMPLED = 300;
const SYSTEM = new Set(["_partition", "_offset", "raw"]);

/**
 * @typedef {{ roles: { user: string, event: string, time: string }, names: string[],
 *   properties: string[], columns: Set<string>, first: number, last: number }} Known
 * `first` and `last` are times of events in ms.
 */

let held = /** @type {{ at: number, known: Known } | null} */ (null);

/** What is known, or null where there are no events yet. @returns {Promise<Known | null>} */
export async function known(signal) {
  if (held && Date.now() - held.at < HELD_MS) return held.known;
  const partitions = await ask("/v1/partitions", {}, signal);
  if (!partitions.some((one) => one.accepted)) return null;
  const [roles, schema] = await Promise.all([
    ask("/v1/roles", {}, signal),
    ask("/v1/schema", {}, signal),
  ]);
  const [event, time] = [quoted(roles.event), quoted(roles.time)];
  const names = await sql(
    `select ${event} as name from events where ${event} is not null
    group by all order by count(*) desc limit ${NAMES_MAX}`,
    signal,
  );
  const [ends] = await sql(
    `select epoch_ms(min(${time})) as first, epoch_ms(max(${time})) as last
    from events where ${time} <= now()`,
    signal,
  );
  if (ends.last === null) return null;
  const columns = new Set(schema.map((one) => one.name));
  const messages = columns.has("raw")
    ? await sql(`select raw from events limit ${SAMPLED}`, signal)
    : [];
  const properties = new Set([...columns].filter((name) => !SYSTEM.has(name)));
  messages.forEach(({ raw }) => paths(raw).forEach((path) => properties.add(path)));
  const found = {
    roles,
    columns,
    ...ends,
    names: names.map((one) => one.name),
    properties: [...properties].sort(),
  };
  held = { at: Date.now(), known: found };
  return found;
}

/** The paths of a message, to the second level. @param {string | null} raw */
function paths(raw) {
  let found;
  try {
    found = JSON.parse(raw ?? "null");
  } catch {
    return [];
  }
  if (found === null || typeof found !== "object" || Array.isArray(found)) return [];
  return Object.entries(found).flatMap(([name, value]) => {
    if (/['"\\\x00-\x1f.]/.test(name) || !name) return [];
    const inner =
      value !== null && typeof value === "object" && !Array.isArray(value)
        ? Object.keys(value).filter((one) => one && !/['"\\\x00-\x1f.]/.test(one))
        : null;
    return inner ? inner.map((one) => `${name}.${one}`) : [name];
  });
}

/** Values that a property has, most frequent first. @param {string} name @param {Known} of */
export async function valuesOf(name, of, signal) {
  const held = of.columns.has(name)
    ? quoted(name)
    : `raw->>'$${name
        .replace(/^\$\./, "")
        .split(".")
        .map((key) => `.${quoted(key)}`)
        .join("")
        .replaceAll("'", "''")}'`;
  const rows = await sql(
    `select value from (select (${held})::varchar as value from events limit 50000)
    where value is not null group by all order by count(*) desc limit 50`,
    signal,
  );
  return rows.map((one) => one.value);
}
