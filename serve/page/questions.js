// The questions of the explorer: what is chosen for each, how it is asked, and what its answer looks
// like.

import { filtered, labelOf } from "./address.js";
import { bars, flow, heat, lines } from "./chart.js";
import { h, table } from "./dom.js";
import { eventsAddress } from "./events.js";
import { bucket, length, number, percent } from "./format.js";

/**
 * @typedef {Record<string, any>} Chosen by the names of fields; `where` are the filters of all events
 * @typedef {{ period: import("./address.js").Period, chosen: Chosen, user: string }} Asked `user` is the
 *   column of users
 * @typedef {{ name: string, kind: "kinds" | "kind" | "choice" | "text" | "number" | "property" | "check",
 *   label: string, initial?: any, options?: [string, string][], attributes?: object }} FieldOf
 * @typedef {{ title: string, about: string, path: string, fields: FieldOf[], intervals: string[],
 *   sql?: boolean, given: (chosen: Chosen) => Record<string, any>,
 *   draw: (answer: any, asked: Asked) => Node[] }} QuestionOf
 */

const OF_A_PROPERTY = ["sum", "mean", "median", "distinct"];
const MEASURES = /** @type {[string, string][]} */ ([
  ["uniques", "users"],
  ["totals", "events"],
  ["average", "events per user"],
  ["share", "share of active users"],
  ["sum", "sum of a property"],
  ["mean", "mean of a property"],
  ["median", "median of a property"],
  ["distinct", "distinct values of a property"],
]);
const BY = /** @type {FieldOf[]} */ ([
  { name: "by", kind: "property", label: "Group by" },
  {
    name: "limit",
    kind: "number",
    label: "Groups at most",
    initial: 6,
    attributes: { min: 1, max: 100 },
  },
]);
const INTERVALS = ["5 min", "hour", "day", "week", "month"];
const ANY = { event: null };

/** The address of events that count in a figure: those that have a user. */
const behind = (kind, where, within, user) =>
  eventsAddress(kind, [...where, { property: user, op: "set" }], within);

const groupName = (row) => (row.others ? "(others)" : (row.group ?? "(none)"));
const groupKey = (row) => JSON.stringify([row.group ?? null, Boolean(row.others)]);
const unique = (values) => [...new Set(values)];

/** Filters for the events of a row's group. */
function groupWhere(row, by, rows) {
  if (!by) return [];
  if (!row.others)
    return row.group === null
      ? [{ property: by, op: "not set" }]
      : [{ property: by, op: "is", values: [row.group] }];
  const named = rows.filter((one) => !one.others);
  const values = unique(named.map((one) => one.group).filter((one) => one !== null));
  const missing = named.some((one) => one.group === null) ? [{ property: by, op: "set" }] : [];
  return [...(values.length ? [{ property: by, op: "is not", values }] : []), ...missing];
}

/** The part of a period that a bucket is. @param {string[]} buckets all of them, in order */
const bucketPeriod = (buckets, at, { start, end, zone }) => ({
  start: at ? new Date(buckets[at]).toISOString() : start,
  end: at + 1 < buckets.length ? new Date(buckets[at + 1]).toISOString() : end,
  zone,
});

const whole = ({ start, end, zone }) => ({ start, end, zone });

/** Rows of (bucket, value) as lines, one for each key. */
function overTime(label, rows, { period, keys, names, value, format, axis, href }) {
  const buckets = unique(rows.map((row) => row.bucket));
  const all = unique(rows.map(keys));
  const series = all.map((key) => {
    const own = rows.filter((row) => keys(row) === key);
    const found = new Map(own.map((row) => [row.bucket, value(row)]));
    const values = buckets.map((one) => found.get(one) ?? null);
    const one = own[0];
    return { name: names(one), values, href: (n) => href(one, bucketPeriod(buckets, n, period)) };
  });
  const labels = buckets.map((one) => bucket(Date.parse(one), period.interval, period.zone));
  return lines(label, labels, series, format, { axis });
}

function segmentation(answer, { period, chosen, user }) {
  const { events, measure, of, by, where } = chosen;
  const format = measure === "share" ? percent : number;
  const told = OF_A_PROPERTY.includes(measure)
    ? `${measure} of ${of}`
    : (MEASURES.find(([name]) => name === measure)?.[1] ?? measure);
  const named = (row) =>
    [
      events.length > 1
        ? `${String.fromCharCode(65 + row.event)} ${labelOf(events[row.event])}`
        : null,
      by ? groupName(row) : null,
    ]
      .filter(Boolean)
      .join(", ") || labelOf(events[0]);
  const link = (row, within) =>
    behind(filtered(events[row.event], where), groupWhere(row, by, answer.overall), within, user);
  const figures = answer.overall.map((row, at) => ({
    heading: "",
    bars: [
      {
        color: at,
        value: row.value ?? 0,
        told: `${named(row)}: ${format(row.value)}`,
        href: link(row, whole(period)),
      },
    ],
  }));
  return [
    h("h2", {}, `${told[0].toUpperCase()}${told.slice(1)} by ${period.interval}`),
    overTime(`${told} by ${period.interval}`, answer.over_time, {
      period,
      keys: (row) => `${row.event} ${groupKey(row)}`,
      names: named,
      value: (row) => row.value,
      format,
      axis: measure === "share" ? percent : undefined,
      href: link,
    }),
    h("h2", {}, "Over the whole period"),
    bars(
      `${told} over the whole period`,
      figures,
      Math.max(...answer.overall.map((row) => row.value ?? 0), 0),
    ),
    data(
      "By interval",
      answer.over_time,
      {
        [period.interval]: (row) => bucket(Date.parse(row.bucket), period.interval, period.zone),
        of: named,
        [told]: (row) => format(row.value),
      },
      [2],
    ),
  ];
}

/** All figures as a table, for who reads them. */
const ROWS_MAX = 500;
function data(caption, rows, columns, numbers) {
  const names = Object.keys(columns);
  const shown = rows.slice(0, ROWS_MAX);
  const cells = shown.map((row) => names.map((name) => columns[name](row)));
  const more = rows.length > ROWS_MAX ? `, the first ${ROWS_MAX} of ${number(rows.length)}` : "";
  return h(
    "details",
    {},
    h("summary", {}, `${caption} as a table`),
    table(`${caption}${more}`, names, cells, new Set(numbers)),
  );
}

function funnel(answer, { period, chosen, user }) {
  const { steps, by, where, count } = chosen;
  const counted = count === "totals" ? "paths" : "users";
  const link = (row, within) =>
    behind(filtered(steps[row.step - 1], where), groupWhere(row, by, answer.steps), within, user);
  const rows = steps.map((step, at) => ({
    heading: `${at + 1}. ${labelOf(step)}`,
    bars: answer.steps
      .filter((row) => row.step === at + 1)
      .map((row, n) => ({
        color: n,
        value: row.of_first ?? 0,
        href: link(row, whole(period)),
        told: `${by ? `${groupName(row)}: ` : ""}${number(row.count)} ${counted} (${percent(row.of_first)})`,
      })),
  }));
  const last = answer.over_time.filter((row) => row.step === steps.length);
  return [
    h("h2", {}, `From step to step, of ${counted} of step 1`),
    bars("Funnel", rows, 1),
    h("h2", {}, `Share that converts, by ${period.interval} of entry`),
    overTime("Share that converts", last, {
      period,
      keys: groupKey,
      names: (row) => (by ? groupName(row) : "converts"),
      value: (row) => row.of_first,
      format: percent,
      axis: percent,
      href: (row, within) => link({ ...row, step: 1 }, within),
    }),
    data(
      "Steps",
      answer.steps,
      {
        step: (row) => row.step,
        event: (row) => row.event,
        ...(by ? { [by]: groupName } : {}),
        [counted]: (row) => number(row.count),
        "of first": (row) => percent(row.of_first),
        "of previous": (row) => percent(row.of_previous),
        "median time": (row) => (row.median_ms === null ? "–" : length(row.median_ms)),
      },
      by ? [0, 3, 4, 5, 6] : [0, 2, 3, 4, 5],
    ),
  ];
}

const WIDTHS_MS = { day: 86400e3, week: 7 * 86400e3, month: 30 * 86400e3 };
const CELLS_MAX = 60;

function retention(answer, { period, chosen, user }) {
  const { back, by, where } = chosen;
  const unit = period.interval;
  const returns = behind(filtered(back, where), [], whole(period), user);
  const days = unique(answer.overall.map((row) => row.from_day));
  const groups = unique(answer.overall.map(groupKey));
  const series = groups.map((key) => {
    const own = answer.overall.filter((row) => groupKey(row) === key);
    return {
      name: groupName(own[0]),
      values: days.map((day) => own.find((row) => row.from_day === day)?.share ?? null),
      href: () => returns,
    };
  });
  const shown = answer.cohorts.filter((row) => row.out_of > 0);
  const name = (row) =>
    `${bucket(Date.parse(row.cohort), unit, period.zone)}${by ? ` ${groupName(row)}` : ""}`;
  const cohorts = unique(shown.map((row) => `${row.cohort} ${groupKey(row)}`)).slice(0, CELLS_MAX);
  const cells = cohorts.map((key) =>
    days.map((day) => {
      const row = shown.find(
        (one) => `${one.cohort} ${groupKey(one)}` === key && one.from_day === day,
      );
      if (!row || !(row.complete || row.count)) return null;
      const start = Date.parse(row.cohort) + day * WIDTHS_MS[unit];
      const within = {
        start: new Date(start).toISOString(),
        end: new Date(start + WIDTHS_MS[unit]).toISOString(),
        zone: period.zone,
      };
      return {
        share: day ? row.share : 0,
        text: percent(row.share),
        faint: !row.complete,
        told: `${name(row)}, ${unit} ${day}: ${number(row.count)} of ${number(row.out_of)} users (${percent(row.share)})`,
        href: behind(filtered(back, where), [], within, user),
      };
    }),
  );
  const labels = cohorts.map((key) =>
    name(shown.find((one) => `${one.cohort} ${groupKey(one)}` === key)),
  );
  return [
    h("h2", {}, `Share of users who came back, by ${unit}s since the start`),
    lines(
      "Share of users who came back",
      days.map((day) => `${unit} ${day}`),
      series,
      percent,
      { axis: percent },
    ),
    h("h2", {}, "By cohort"),
    h(
      "div",
      { class: "scroll", tabindex: 0, role: "region", "aria-label": "Cohorts" },
      heat("Share of each cohort that came back", days.map(String), labels, cells),
    ),
    data(
      "Cohorts",
      shown,
      {
        cohort: name,
        [unit]: (row) => row.from_day,
        "came back": (row) => number(row.count),
        users: (row) => number(row.out_of),
        share: (row) => percent(row.share),
        "is over": (row) => (row.complete ? "yes" : "no"),
      },
      [1, 2, 3, 4],
    ),
  ];
}

function paths(answer, { period, chosen, user }) {
  const { where, start } = chosen;
  const key = (step, event, kind) => JSON.stringify([step, event, kind]);
  const steps = unique(answer.nodes.map((row) => row.step)).map((step) =>
    answer.nodes
      .filter((row) => row.step === step)
      .sort((a, b) => Number(a.kind !== "event") - Number(b.kind !== "event") || b.users - a.users)
      .map((row) => ({
        key: key(step, row.event, row.kind),
        name: row.event,
        value: row.users,
        plain: row.kind !== "event",
        told: `Step ${step}, ${row.event}: ${number(row.users)} users`,
        href:
          row.kind !== "event"
            ? null
            : behind(
                filtered(step === 1 ? start : { event: row.event }, where),
                [],
                whole(period),
                user,
              ),
      })),
  );
  const links = answer.links.map((row) => ({
    from: key(row.step, row.event, row.kind),
    to: key(row.step + 1, row.next_event, row.next_kind),
    value: row.users,
    told: "",
  }));
  return [
    h("h2", {}, "What users do next"),
    h(
      "div",
      { class: "scroll", tabindex: 0, role: "region", "aria-label": "Paths" },
      flow("Paths of users, step by step", steps, links),
    ),
    data(
      "Steps",
      answer.nodes,
      { step: (row) => row.step, event: (row) => row.event, users: (row) => number(row.users) },
      [0, 2],
    ),
    data(
      "Ways",
      answer.links,
      {
        step: (row) => row.step,
        from: (row) => row.event,
        to: (row) => row.next_event,
        users: (row) => number(row.users),
      },
      [0, 3],
    ),
  ];
}

/** @type {Record<string, QuestionOf>} */
export const QUESTIONS = {
  segmentation: {
    title: "Segmentation",
    about: "How often events happened over time, or how many users did them.",
    path: "/v1/segmentation",
    intervals: INTERVALS,
    sql: true,
    fields: [
      { name: "events", kind: "kinds", label: "Event", initial: [ANY] },
      { name: "measure", kind: "choice", label: "Measure", initial: "uniques", options: MEASURES },
      { name: "of", kind: "property", label: "Of the property" },
      ...BY,
    ],
    given: ({ events, measure, of, by, limit, where }) => ({
      events: events.map((one) => filtered(one, where)),
      measure,
      of: OF_A_PROPERTY.includes(measure) ? of : null,
      by,
      limit: by ? limit : null,
    }),
    draw: segmentation,
  },
  funnel: {
    title: "Funnel",
    about: "How many users do one thing after the other.",
    path: "/v1/funnel",
    intervals: INTERVALS,
    fields: [
      { name: "steps", kind: "kinds", label: "Step", initial: [] },
      {
        name: "window",
        kind: "text",
        label: "Within",
        initial: "1d",
        attributes: {
          pattern: "\\d{1,9}(ms|s|m|h|d)",
          title: "a length of time, such as 30m, 2h or 1d",
          required: true,
        },
      },
      {
        name: "order",
        kind: "choice",
        label: "Order",
        initial: "this",
        options: [
          ["this", "this order"],
          ["exact", "nothing between"],
          ["any", "any order"],
        ],
      },
      {
        name: "count",
        kind: "choice",
        label: "Count",
        initial: "uniques",
        options: [
          ["uniques", "users"],
          ["totals", "all paths"],
        ],
      },
      ...BY,
    ],
    given: ({ steps, window, order, count, by, limit, where }) => ({
      steps: steps.map((one) => filtered(one, where)),
      window,
      order,
      count,
      by,
      limit: by ? limit : null,
    }),
    draw: funnel,
  },
  retention: {
    title: "Retention",
    about: "How many users come back on later days.",
    path: "/v1/retention",
    intervals: ["day", "week", "month"],
    fields: [
      { name: "start", kind: "kind", label: "First they do", initial: ANY },
      { name: "back", kind: "kind", label: "Then they come back to", initial: ANY },
      {
        name: "mode",
        kind: "choice",
        label: "Counts",
        initial: "on",
        options: [
          ["on", "on that day"],
          ["on or after", "on that day or later"],
        ],
      },
      {
        name: "days",
        kind: "number",
        label: "Up to day",
        initial: 7,
        attributes: { min: 0, max: 90 },
      },
      ...BY,
    ],
    given: ({ start, back, mode, days, by, limit, where }) => ({
      start: filtered(start, where),
      back: filtered(back, where),
      mode,
      days,
      by,
      limit: by ? limit : null,
    }),
    draw: retention,
  },
  paths: {
    title: "Paths",
    about: "What users do after an event, step by step.",
    path: "/v1/paths",
    intervals: ["day"],
    fields: [
      { name: "start", kind: "kind", label: "After", initial: ANY },
      { name: "steps", kind: "number", label: "Steps", initial: 4, attributes: { min: 1, max: 9 } },
      {
        name: "limit",
        kind: "number",
        label: "Events a step",
        initial: 5,
        attributes: { min: 1, max: 20 },
      },
      {
        name: "window",
        kind: "text",
        label: "Within",
        initial: "1d",
        attributes: {
          pattern: "\\d{1,9}(ms|s|m|h|d)",
          title: "a length of time, such as 30m, 2h or 1d",
          required: true,
        },
      },
      { name: "collapse", kind: "check", label: "An event that is repeated is one step" },
    ],
    given: ({ start, steps, limit, window, collapse, where }) => ({
      start: filtered(start, where),
      steps,
      limit,
      window,
      collapse: collapse || null,
      among: where.length ? [filtered(ANY, where)] : null,
    }),
    draw: paths,
  },
};
