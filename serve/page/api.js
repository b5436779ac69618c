// Questions to the server, over fetch. A token is kept for this tab alone, and sent with each.

const TOKEN = "forebay-token";

/** What a status means to who looks, where its own title is of no use to them. */
const TITLES = /** @type {Record<number, string>} */ ({
  403: "This token may not do that",
  422: "This can't be answered",
  429: "Too many questions at once",
  502: "The answer was lost",
  504: "It took too long",
  507: "It took too much memory",
});

/** An answer that is none: what the server says of it (RFC 9457), or that there is no server. */
export class Problem extends Error {
  /** @param {number} status @param {string} title @param {string} detail */
  constructor(status, title, detail) {
    super(detail);
    this.status = status;
    this.title = title;
  }
}

/** How far the server's clock is before this one, in ms. */
let ahead = 0;
export const now = () => Date.now() + ahead;

let asking = /** @type {Promise<void> | null} */ (null);

/** Ask for a token, once for all that need one. @param {boolean} refused */
function token(refused) {
  asking ??= new Promise((done) => {
    const dialog = /** @type {HTMLDialogElement} */ (document.getElementById("token"));
    const text = /** @type {HTMLInputElement} */ (document.getElementById("token-text"));
    const told = /** @type {HTMLElement} */ (document.getElementById("token-told"));
    if (refused) told.textContent = "The server knows no such token. It stays in this tab only.";
    text.value = "";
    dialog.oncancel = (event) => event.preventDefault();
    dialog.onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem(TOKEN, text.value.trim());
      text.value = "";
      dialog.close();
      asking = null;
      done();
    };
    dialog.showModal();
  });
  return asking;
}

/**
 * @param {string} path @param {Record<string, any>} given objects and lists of them are sent as JSON
 * @param {AbortSignal} [signal]
 * @returns {Promise<Response>} one that is an answer
 */
async function asked(path, given, signal) {
  const query = new URLSearchParams();
  const add = (name, value) => {
    if (value === null || value === undefined || value === "") return;
    if (Array.isArray(value)) value.forEach((one) => add(name, one));
    else query.append(name, typeof value === "object" ? JSON.stringify(value) : String(value));
  };
  Object.entries(given).forEach(([name, value]) => add(name, value));
  for (;;) {
    const held = sessionStorage.getItem(TOKEN);
    const headers = /** @type {Record<string, string>} */ (
      held ? { Authorization: `Bearer ${held}` } : {}
    );
    let response;
    try {
      response = await fetch(`${path}?${query}`, { headers, signal });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new Problem(0, "No answer", "The server can't be reached. Does forebay serve run?");
    }
    const date = Date.parse(response.headers.get("date") ?? "");
    if (date) ahead = date + 500 - Date.now();
    if (response.status === 401) {
      await token(Boolean(held));
      continue;
    }
    if (!response.ok) throw await problemOf(response);
    return response;
  }
}

async function problemOf(response) {
  const text = await response.text();
  try {
    const { title, detail } = JSON.parse(text);
    return new Problem(response.status, TITLES[response.status] ?? title, detail);
  } catch {
    return new Problem(response.status, `Status ${response.status}`, text.slice(0, 500));
  }
}

/** JSON, in which whole numbers that a double can't hold are BigInt. @param {string} text */
export const parsed = (text) =>
  JSON.parse(text, (_, value, context) =>
    typeof value === "number" &&
    !Number.isSafeInteger(value) &&
    /^-?\d+$/.test(context?.source ?? "")
      ? BigInt(context.source)
      : value,
  );

/**
 * The answer as JSON. Throws Problem.
 * @param {string} path @param {Record<string, any>} [given] @param {AbortSignal} [signal]
 * @returns {Promise<any>}
 */
export async function ask(path, given = {}, signal) {
  return parsed(await askText(path, given, signal));
}

/**
 * The answer as text. Throws Problem.
 * @param {string} path @param {Record<string, any>} [given] @param {AbortSignal} [signal]
 */
export async function askText(path, given = {}, signal) {
  return (await asked(path, given, signal)).text();
}

/** Rows of SQL. @param {string} text @param {AbortSignal} [signal] @returns {Promise<any[]>} */
export const sql = (text, signal) => ask("/v1/sql", { text }, signal);

/** A name in SQL. @param {string} name */
export const quoted = (name) => `"${name.replaceAll('"', '""')}"`;

/**
 * Events as they come, until the signal. `told` gets the newest of what came, as texts of JSON, and
 * how many were left out; of more than `most` at once only the last are kept.
 * @param {Record<string, any>} given @param {number} most
 * @param {(lines: string[], missed: number) => void} told @param {AbortSignal} signal
 */
export async function follow(given, most, told, signal) {
  const response = await asked("/v1/events", given, signal);
  const stream = /** @type {ReadableStream} */ (response.body).pipeThrough(new TextDecoderStream());
  const reader = stream.getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Problem(0, "No more events", "The server ended the stream of events.");
    const messages = (held + value).split("\n\n");
    held = messages.pop() ?? "";
    let lines = [];
    let missed = 0;
    for (const message of messages) {
      if (message.startsWith("data: ")) lines.push(message.slice(6).split("\n", 1)[0]);
      else if (message.startsWith("event: missed")) {
        missed += JSON.parse(message.slice(message.indexOf("{"))).missed;
      }
    }
    missed += Math.max(0, lines.length - most);
    lines = lines.slice(-most);
    if (lines.length || missed) told(lines, missed);
  }
}
