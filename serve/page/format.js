// Numbers and times as people read them.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const real = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const share = new Intl.NumberFormat("en", { style: "percent", maximumFractionDigits: 1 });

/** @param {number | null | undefined} value */
export const number = (value) =>
  value === null || value === undefined
    ? "–"
    : Number.isInteger(value) || Math.abs(value) >= 1000
      ? whole.format(value)
      : real.format(value);
/** For an axis. @param {number} value */
export const brief = (value) => short.format(value);
/** @param {number | null | undefined} value */
export const percent = (value) =>
  value === null || value === undefined ? "–" : share.format(value);

/** How long ago, or how long. @param {number} ms */
export function length(ms) {
  const units = [
    ["d", 86400e3],
    ["h", 3600e3],
    ["min", 60e3],
    ["s", 1e3],
  ];
  for (const [unit, size] of units) {
    if (Math.abs(ms) >= 2 * Number(size) || unit === "s") {
      return `${real.format(Math.round((10 * ms) / Number(size)) / 10)} ${unit}`;
    }
  }
  return "";
}

const forms = new Map();
/** The parts of a time in a zone. */
function parts(ms, zone) {
  if (!forms.has(zone)) {
    forms.set(
      zone,
      new Intl.DateTimeFormat("en-CA", {
        timeZone: zone,
        hourCycle: "h23",
        year: "numeric",
        month: "2-digit",
        day: "2-digit",
        hour: "2-digit",
        minute: "2-digit",
        second: "2-digit",
      }),
    );
  }
  return Object.fromEntries(
    forms
      .get(zone)
      .formatToParts(ms)
      .map((one) => [one.type, one.value]),
  );
}

/** YYYY-MM-DD. @param {number} ms @param {string} [zone] */
export function day(ms, zone = "UTC") {
  const { year, month, day: of } = parts(ms, zone);
  return `${year}-${month}-${of}`;
}

/** YYYY-MM-DD HH:MM, and :SS where asked for. @param {number} ms */
export function time(ms, zone = "UTC", seconds = false) {
  const { hour, minute, second } = parts(ms, zone);
  return `${day(ms, zone)} ${hour}:${minute}${seconds ? `:${second}` : ""}`;
}

/** What a bucket of an interval is called. @param {number} ms @param {string} interval */
export function bucket(ms, interval, zone = "UTC") {
  if (interval === "month") return day(ms, zone).slice(0, 7);
  return interval === "day" || interval === "week" ? day(ms, zone) : time(ms, zone);
}

/** The day after (or before) a day. @param {string} date YYYY-MM-DD @param {number} days */
export const daysAfter = (date, days) =>
  new Date(Date.parse(`${date}T00:00Z`) + days * 86400e3).toISOString().slice(0, 10);
