// The page: which view is shown, and with what, is its address after the #.

import { alert, h } from "./dom.js";
import { events, user } from "./events.js";
import { explorer } from "./explorer.js";
import { live } from "./live.js";
import { QUESTIONS } from "./questions.js";

/**
 * A view fills `main`; what goes on in it ends with the signal.
 * @typedef {(main: HTMLElement, given: URLSearchParams, signal: AbortSignal) => Promise<void>} View
 * @type {Record<string, [string, View]>}
 */
const VIEWS = {
  live: ["Live", live],
  ...Object.fromEntries(
    Object.entries(QUESTIONS).map(([name, question]) => [
      name,
      [question.title, explorer(name, question)],
    ]),
  ),
  events: ["Events", events],
  user: ["User", user],
};

const main = /** @type {HTMLElement} */ (document.getElementById("main"));
let leaving = new AbortController();

async function show(first = false) {
  leaving.abort();
  leaving = new AbortController();
  const { signal } = leaving;
  const [name, text] = location.hash.slice(1).split(/\?(.*)/s);
  const [title, view] = VIEWS[name] ?? VIEWS.live;
  document.title = `${title} – Forebay`;
  for (const link of document.querySelectorAll("nav a")) {
    const here = link.getAttribute("href") === `#${name || "live"}`;
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const head = h("h1", { tabindex: -1 }, title);
  main.replaceChildren(head);
  main.setAttribute("aria-busy", "true");
  if (!first) head.focus();
  try {
    await view(main, new URLSearchParams(text ?? ""), signal);
  } catch (error) {
    if (!signal.aborted) main.append(alert(/** @type {Error} */ (error), () => show()));
  }
  if (!signal.aborted) main.removeAttribute("aria-busy");
}

document.getElementById("skip")?.addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
addEventListener("hashchange", () => show());
show(true);
