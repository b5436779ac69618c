// Events themselves, never more than a page of them: those behind a figure, and those of a user.

import {
  address,
  filtered,
  labelOf,
  periodLabel,
  readKind,
  readWhere,
  writtenKind,
} from "./address.js";
import { ask, parsed } from "./api.js";
import { h } from "./dom.js";
import { number, time } from "./format.js";
import { known } from "./store.js";
import { nothing, waiting } from "./waiting.js";

const PAGE = 50;

/** The address of a user's timeline. @param {string} id */
export const userAddress = (id) => address("user", { id });

/**
 * The address of the events behind a figure.
 * @param {import("./address.js").Kind} kind @param {import("./address.js").Where[]} where
 * @param {{ start: string, end: string, zone: string } | null} period
 */
export const eventsAddress = (kind, where, period) =>
  address("events", { event: writtenKind(filtered(kind, where)), ...(period ?? {}) });

/** A message as text, in lines if it is JSON. @param {string} raw */
function pretty(raw) {
  try {
    const exact = (_, value) =>
      typeof value === "bigint" ? /** @type {any} */ (JSON).rawJSON(String(value)) : value;
    return JSON.stringify(parsed(raw), exact, 2);
  } catch {
    return raw;
  }
}

/**
 * An event: when, what, who; the rest when it is opened.
 * @param {Record<string, any>} row @param {import("./store.js").Known["roles"]} roles
 * @param {string} zone @param {boolean} [ofUser] whether it is plain whose it is
 */
export function eventItem(row, roles, zone = "UTC", ofUser = false) {
  const who = row[roles.user];
  const { raw, ...columns } = row;
  const at = Date.parse(row[roles.time]);
  const cells = Object.entries(columns).filter(([, value]) => value !== null);
  const more = h(
    "details",
    {},
    h("summary", {}, "All of it"),
    h(
      "dl",
      {},
      cells.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, String(value))]),
    ),
    raw === undefined || raw === null
      ? null
      : h("pre", { tabindex: 0, "aria-label": "The message" }, pretty(String(raw))),
  );
  return h(
    "li",
    {},
    h("span", { class: "when" }, Number.isNaN(at) ? "no time" : time(at, zone, true)),
    " ",
    h("strong", {}, row[roles.event] ?? "(no name)"),
    " ",
    ofUser || who === null || who === undefined
      ? null
      : h("a", { href: userAddress(who) }, String(who)),
    more,
  );
}

/** The events behind a figure. @type {import("./main.js").View} */
export async function events(main, given, signal) {
  const kind = readKind(given.get("event"));
  const where = given.getAll("where").map(readWhere);
  const [start, end, zone] = ["start", "end", "zone"].map((name) => given.get(name));
  const period = start && end ? { start, end, zone: zone ?? "UTC" } : null;
  const about = labelOf(filtered(kind, where));
  main.append(
    h(
      "p",
      { class: "about" },
      h("strong", {}, about),
      period ? `, ${periodLabel({ interval: "day", ...period })}` : "",
    ),
  );
  const found = await waiting(main, signal, async (inner) => {
    const of = await known(inner);
    return of && [of, await ask("/v1/sample", { event: kind, where, period, limit: PAGE }, inner)];
  });
  if (!found) return nothing(main, signal);
  const [
    of,
    {
      events: rows,
      total: [{ events: total }],
    },
  ] = found;
  main.append(
    h(
      "p",
      {},
      total > rows.length
        ? `${number(rows.length)} of ${number(total)} events`
        : `${number(total)} events`,
    ),
    h(
      "ol",
      { class: "events" },
      rows.map((row) => eventItem(row, of.roles, zone ?? "UTC")),
    ),
  );
}

/** A user's timeline. @type {import("./main.js").View} */
export async function user(main, given, signal) {
  const id = given.get("id") ?? "";
  const offset = Number(given.get("offset") ?? 0) || 0;
  const text = h("input", {
    id: "user-id",
    type: "text",
    required: true,
    autocomplete: "off",
    spellcheck: "false",
  });
  text.value = id;
  main.append(
    h(
      "form",
      {
        class: "line",
        onsubmit: (event) => {
          event.preventDefault();
          location.hash = userAddress(text.value);
        },
      },
      h("label", { for: "user-id" }, "User"),
      text,
      h("button", { class: "main" }, "Show"),
    ),
  );
  if (!id) return;
  const found = await waiting(main, signal, async (inner) => {
    const of = await known(inner);
    const path = `/v1/users/${encodeURIComponent(id)}`;
    return of && [of, (await ask(path, { limit: PAGE + 1, offset }, inner)).events];
  });
  if (!found) return nothing(main, signal);
  const [of, rows] = found;
  const newest = rows.slice(-PAGE).reverse();
  const at = (number) => address("user", { id, offset: number || null });
  main.append(
    h(
      "p",
      {},
      newest.length
        ? `${number(newest.length)} events, the newest first (UTC)`
        : "No events of this user are kept.",
    ),
    h(
      "ol",
      { class: "events" },
      newest.map((row) => eventItem(row, of.roles, "UTC", true)),
    ),
    h(
      "nav",
      { "aria-label": "Pages", class: "line" },
      offset > 0 && h("a", { href: at(Math.max(0, offset - PAGE)) }, "Newer"),
      rows.length > PAGE && h("a", { href: at(offset + PAGE) }, "Older"),
    ),
  );
}
