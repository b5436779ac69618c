// What is going on: rates, progress of partitions, duplicates, rejects, what is to be handed over, and
// events as they come.

import { ask, follow, now, parsed, sql } from "./api.js";
import { columns } from "./chart.js";
import { alert, button, h, table } from "./dom.js";
import { eventItem, eventsAddress } from "./events.js";
import { day, length, number, percent, time } from "./format.js";
import { nothing, waiting } from "./waiting.js";

const LOOK_MS = 5000;
const SLOW_MS = 30_000;
const SHOWN = 30;
const SAMPLES = 10;
const SORTED_MAX = 100_000;
const REJECTS = `select reason, detail, broker_time, _partition, _offset, message
  from rejects order by broker_time desc limit ${SAMPLES}`;

/** A figure with its name. */
function figure(name) {
  const value = h("dd", {}, "–");
  const note = h("dd", { class: "note" });
  return {
    element: h("div", { class: "figure" }, h("dt", {}, name), value, note),
    show: (text, more = "") => {
      [value.textContent, note.textContent] = [text, more];
    },
  };
}

const sum = (rows, name) => rows.reduce((total, row) => total + (row[name] ?? 0), 0);
const age = (text) => (text === null ? "–" : length(Math.max(0, now() - Date.parse(text))));

/** Until the time is over and the page is looked at. */
const look = (ms, signal) =>
  new Promise((done) => {
    const seen = () => {
      if (signal.aborted || !document.hidden) {
        document.removeEventListener("visibilitychange", seen);
        done(undefined);
      }
    };
    signal.addEventListener("abort", seen);
    setTimeout(() => {
      document.addEventListener("visibilitychange", seen);
      seen();
    }, ms);
  });

/** @type {import("./main.js").View} */
export async function live(main, given, signal) {
  const first = await waiting(main, signal, (inner) => ask("/v1/partitions", {}, inner));
  if (!first) return;
  const figures = Object.fromEntries(
    [
      ["rate", "Events in the last minute"],
      ["fresh", "Newest event"],
      ["lag", "Lag"],
      ["hot", "Hot"],
      ["cold", "Cold"],
      ["duplicates", "Duplicates"],
      ["rejects", "Rejects"],
    ].map(([name, title]) => [name, figure(title)]),
  );
  const place = Object.fromEntries(
    ["trouble", "minutes", "partitions", "rejects", "handoff"].map((name) => [name, h("div")]),
  );
  const empty = h("div");
  const following = newest(signal);
  const rest = h(
    "div",
    {},
    h(
      "dl",
      { class: "figures" },
      Object.values(figures).map((one) => one.element),
    ),
    h("h2", {}, "Events by minute of upload"),
    place.minutes,
    h("h2", {}, "Partitions"),
    place.partitions,
    h("h2", {}, "To be handed over"),
    place.handoff,
    following.elements,
    h("h2", {}, "Rejects"),
    place.rejects,
  );
  main.append(place.trouble, empty, rest);
  const seen = { at: -Infinity, rejects: -1 };
  const show = async (partitions) => {
    const none = !partitions.some((one) => one.accepted || one.rejects || one.duplicates);
    rest.hidden = none;
    empty.replaceChildren();
    if (none) return nothing(empty, signal);
    following.begin();
    showProgress(figures, place, partitions, await ask("/v1/per_minute", { minutes: 60 }, signal));
    if (performance.now() - seen.at < SLOW_MS) return;
    showHandoff(place.handoff, await handoff(signal));
    const rejects = sum(partitions, "rejects");
    if (rejects !== seen.rejects && !place.rejects.contains(document.activeElement))
      showRejects(place.rejects, rejects, await rejectsOf(rejects, signal));
    [seen.rejects, seen.at] = [rejects, performance.now()];
  };
  const trouble = (error) => {
    if (place.trouble.querySelector("p")?.textContent === error.message) return;
    const before = rest.hidden ? null : h("p", {}, "What is below is from before.");
    place.trouble.replaceChildren(alert(error), ...(before ? [before] : []));
  };
  const goOn = async () => {
    for (await look(LOOK_MS, signal); !signal.aborted; await look(LOOK_MS, signal)) {
      try {
        await show(await ask("/v1/partitions", {}, signal));
        place.trouble.replaceChildren();
      } catch (error) {
        if (!signal.aborted) trouble(error);
      }
    }
  };
  await show(first).catch(trouble);
  goOn();
}

function showProgress(figures, place, partitions, minutes) {
  const accepted = sum(partitions, "accepted");
  const messages =
    accepted +
    sum(partitions, "duplicates") +
    sum(partitions, "rejects") +
    sum(partitions, "rejects_expired");
  const times = partitions
    .map((one) => one.stream_time)
    .filter((one) => one !== null)
    .sort();
  const newest = times[times.length - 1] ?? null;
  const last = minutes[minutes.length - 1];
  const before = minutes[minutes.length - 2];
  figures.rate.show(
    last ? number(last.hot + last.cold) : "0",
    before ? `${number(before.hot + before.cold)} in the minute before` : "",
  );
  figures.fresh.show(
    newest === null ? "–" : `${age(newest)} ago`,
    newest === null ? "" : `${time(Date.parse(newest), "UTC", true)} UTC`,
  );
  const behind = partitions.some((one) => one.lag !== null);
  figures.lag.show(behind ? number(sum(partitions, "lag")) : "–", "messages not read yet");
  figures.hot.show(number(sum(partitions, "hot_events")), "in block logs");
  figures.cold.show(number(sum(partitions, "cold_events")), "in Parquet chunks");
  for (const name of ["duplicates", "rejects"]) {
    const count = sum(partitions, name);
    figures[name].show(number(count), messages ? `${percent(count / messages)} of messages` : "");
  }
  if (!place.minutes.contains(document.activeElement))
    place.minutes.replaceChildren(minutesChart(minutes));
  const names = [
    "partition",
    "newest event",
    "lag",
    "accepted",
    "duplicates",
    "conflicts",
    "rejects",
    "late",
    "hot",
    "cold",
  ];
  const several = new Set(partitions.map((one) => one.node)).size > 1;
  const rows = partitions.map((one) => [
    one.partition,
    one.stream_time === null ? "–" : `${age(one.stream_time)} ago`,
    number(one.lag),
    number(one.accepted),
    number(one.duplicates),
    number(one.conflicts),
    number(one.rejects),
    number(one.late),
    number(one.hot_events),
    number(one.cold_events),
  ]);
  if (several) rows.forEach((row, at) => row.unshift(partitions[at].node));
  const all = several ? ["node", ...names] : names;
  if (place.partitions.contains(document.activeElement)) return;
  const left = place.partitions.querySelector(".scroll")?.scrollLeft ?? 0;
  const drawn = table(
    "Partitions",
    all,
    rows,
    new Set(all.map((_, at) => at).slice(several ? 2 : 1)),
  );
  place.partitions.replaceChildren(drawn);
  drawn.scrollLeft = left;
}

/** @param {{ minute: string, hot: number, cold: number }[]} minutes */
function minutesChart(minutes) {
  const labels = minutes.map((one) => time(Date.parse(one.minute)).slice(11));
  const parts = Object.entries({ hot: 1, cold: 0 }).map(([name, color]) => ({
    name,
    color,
    values: minutes.map((one) => one[name]),
  }));
  return columns("Events by minute, hot and cold", labels, parts, (at) => {
    const start = Date.parse(minutes[at].minute);
    const values = [start, start + 59_999].map((ms) => new Date(ms).toISOString());
    return eventsAddress(
      { event: null },
      [{ property: "upload_time", op: "between", values }],
      null,
    );
  });
}

/** @returns {Promise<[any, any[], number]>} the receipt, days that are to be handed over, late events */
async function handoff(signal) {
  const receipt = await ask("/v1/receipt", {}, signal);
  const days = await sql(
    `select strftime(upload_time at time zone 'UTC', '%Y-%m-%d') as day, count(*) as events
    from events group by all order by all`,
    signal,
  );
  const [{ late }] = await sql("select count(*) as late from events_late", signal);
  return [receipt, days, late];
}

function showHandoff(place, [receipt, days, late]) {
  const until = (text) => (text === null ? "none yet" : `${time(Date.parse(text))} UTC`);
  const today = day(now());
  const state = (one) =>
    receipt.sealed_until !== null && one < receipt.sealed_until.slice(0, 10)
      ? "sealed"
      : one < today
        ? "over, can be sealed"
        : "going on";
  place.replaceChildren(
    h(
      "p",
      {},
      `Batch ${receipt.batch_number}; handed over until: ${until(receipt.covered_until)}; sealed until: ${until(receipt.sealed_until)}; ${number(late)} late events.`,
    ),
    table(
      "Days that the batch layer has not",
      ["day (UTC)", "events", ""],
      days.map((one) => [one.day, number(one.events), state(one.day)]),
      new Set([1]),
    ),
  );
}

/** The newest of so many rejects; of more than can be sorted in a moment, those that come first. */
async function rejectsOf(count, signal) {
  if (!count) return [];
  if (count > SORTED_MAX) return ask("/v1/rejects", { limit: SAMPLES }, signal);
  return sql(REJECTS, signal);
}

function showRejects(place, count, rows) {
  if (!rows.length) {
    place.replaceChildren(h("p", {}, "None is kept."));
    return;
  }
  place.replaceChildren(
    h("p", {}, `${count > SORTED_MAX ? "Some" : "The newest"} of ${number(count)} that are kept:`),
    h(
      "ol",
      { class: "events" },
      rows.map((row) =>
        h(
          "li",
          {},
          h(
            "span",
            { class: "when" },
            row.broker_time === null ? "no time" : time(Date.parse(row.broker_time), "UTC", true),
          ),
          " ",
          h("strong", {}, row.reason),
          " ",
          h("span", {}, row.detail ?? ""),
          h(
            "details",
            {},
            h("summary", {}, `Message, partition ${row._partition}, offset ${row._offset}`),
            h("pre", { tabindex: 0, "aria-label": "The message" }, row.message ?? "(nothing)"),
          ),
        ),
      ),
    ),
  );
}

/** The events that come, from `begin` until the signal, as long as it is not paused. */
function newest(signal) {
  const list = h("ol", { class: "events" });
  const told = h("p", { class: "told" });
  const place = h("div", {}, told, list);
  let pausing = null;
  let missed = 0;
  const show = (rows, roles) => {
    const items = rows.reverse().map((line) => eventItem(parsed(line), roles));
    list.prepend(...items);
    while (list.children.length > SHOWN) list.lastChild.remove();
  };
  const start = async () => {
    pausing = new AbortController();
    const either = AbortSignal.any([signal, pausing.signal]);
    pause.textContent = "Pause";
    told.textContent = "As they come:";
    try {
      const roles = await ask("/v1/roles", {}, either).catch((problem) => {
        if (problem.status !== 422) throw problem;
        // Of a schema without roles.
        return { time: "upload_time" };
      });
      await follow(
        { last: 10 },
        SHOWN,
        (lines, more) => {
          missed += more;
          show(lines, roles);
          told.textContent = missed
            ? `As they come, but for ${number(missed)} that were too many to show:`
            : "As they come:";
        },
        either,
      );
    } catch (error) {
      if (!either.aborted) {
        told.replaceChildren(alert(/** @type {Error} */ (error)));
        stop();
      }
    }
  };
  const stop = () => {
    pausing?.abort();
    pausing = null;
    pause.textContent = "Follow";
  };
  const pause = button("Follow", () => {
    if (pausing) {
      stop();
      told.textContent = "Paused.";
    } else {
      list.replaceChildren();
      start();
    }
  });
  let begun = false;
  const begin = () => {
    if (!begun) start();
    begun = true;
  };
  return { begin, elements: [h("h2", {}, "Newest events"), h("p", {}, pause), place] };
}
