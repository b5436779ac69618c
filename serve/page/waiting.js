// A question on its way: that it runs, for how long, and a way to end it.

import { alert, button, h } from "./dom.js";
import { length } from "./format.js";

/**
 * What the work comes to; undefined if it was ended, or went wrong, which is said in `place`.
 * @template T
 * @param {HTMLElement} place @param {AbortSignal} signal
 * @param {(signal: AbortSignal) => Promise<T>} work
 * @returns {Promise<T | undefined>}
 */
export async function waiting(place, signal, work) {
  const ending = new AbortController();
  const either = AbortSignal.any([signal, ending.signal]);
  const began = performance.now();
  const seconds = h("span", { "aria-hidden": "true" });
  const shown = h(
    "div",
    { class: "waiting" },
    h("span", { class: "spinner", "aria-hidden": "true" }),
    h("span", { role: "status" }, "Asking…"),
    seconds,
    button("Cancel", () => ending.abort()),
  );
  const ticking = setInterval(() => {
    seconds.textContent = length(performance.now() - began);
  }, 500);
  place.append(shown);
  try {
    return await work(either);
  } catch (error) {
    if (signal.aborted) throw error;
    const again = () => {
      dispatchEvent(new HashChangeEvent("hashchange"));
    };
    const told = ending.signal.aborted
      ? new Error("The question was ended before it was answered.")
      : error;
    if (ending.signal.aborted) /** @type {any} */ (told).title = "Cancelled";
    place.append(alert(/** @type {Error} */ (told), again));
    return undefined;
  } finally {
    clearInterval(ticking);
    shown.remove();
  }
}

/** Of a store without events, unless something went wrong before. */
export function nothing(place, signal) {
  if (signal.aborted || place.querySelector(".alert")) return;
  place.append(
    h(
      "div",
      { class: "empty" },
      h("p", {}, h("strong", {}, "No events yet.")),
      h(
        "p",
        {},
        "Once the job has taken some in, they are here. ",
        h("code", {}, "forebay status"),
        " says whether it runs.",
      ),
    ),
  );
}
