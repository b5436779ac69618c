// Charts as SVG, drawn at the width that there is. Each figure is a mark: a link to what it is made
// of, with its value as its name. A chart is one stop of the Tab key; arrows go from mark to mark.

import { h, s } from "./dom.js";
import { brief } from "./format.js";

const COLORS = 8;
const LABEL_PX = 7;
const MARKS_MAX = 1500;

/** The class of a colour. @param {number} n */
export const color = (n) => `c${n % COLORS}`;

/**
 * A figure of a chart: its shape, its name, its place among the others, and what it leads to.
 * @param {Element | Element[]} shape @param {string} label @param {number} row @param {number} column
 * @param {string | null} [href]
 */
function mark(shape, label, row, column, href = null) {
  const common = {
    class: "mark",
    "aria-label": label,
    tabindex: -1,
    "data-at": `${row} ${column}`,
  };
  return href ? s("a", { ...common, href }, shape) : s("g", { ...common, role: "img" }, shape);
}

/** Where a mark is. @returns {[number, number]} */
const place = (one) => one.dataset.at.split(" ").map(Number);

/** The mark that a key leads to from another one. */
function next(marks, from, key) {
  const [row, column] = place(from);
  if (key === "Home") return marks[0];
  if (key === "End") return marks[marks.length - 1];
  const across = key === "ArrowLeft" || key === "ArrowRight";
  const sign = key === "ArrowRight" || key === "ArrowDown" ? 1 : -1;
  let best = null;
  let least = Infinity;
  for (const one of marks) {
    const [r, c] = place(one);
    const [along, aside] = across ? [c - column, r - row] : [r - row, c - column];
    const far = along * sign + (across ? 1000 : 0.001) * Math.abs(aside);
    if (along * sign > 0 && far < least) [best, least] = [one, far];
  }
  return best ?? from;
}

const KEYS = new Set(["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"]);

/**
 * A chart that is drawn anew when its width changes.
 * @param {string} label @param {(width: number) => [number, Element[], number?]} draw its height, what
 * is in it, and the width that it needs, if that is more
 */
function chart(label, draw) {
  const box = h("div", { class: "chart" });
  const told = h("p", { class: "readout", "aria-hidden": "true" }, "\u00a0");
  let width = 0;
  const redraw = () => {
    const [height, inside, needed = width] = draw(width);
    const active = box.querySelector(".mark:focus")?.dataset.at;
    const drawn = s(
      "svg",
      { width: Math.max(width, needed), height, role: "group", "aria-label": label },
      inside,
    );
    box.replaceChildren(drawn);
    const marks = [...drawn.querySelectorAll(".mark")];
    const first = marks.find((one) => one.dataset.at === active);
    (first ?? marks[0])?.setAttribute("tabindex", 0);
    if (first) first.focus();
  };
  const say = (event) => {
    const found = event.target.closest(".mark");
    if (found) told.textContent = found.getAttribute("aria-label");
  };
  box.addEventListener("pointerover", say);
  box.addEventListener("focusin", (event) => {
    say(event);
    box.querySelector('.mark[tabindex="0"]')?.setAttribute("tabindex", -1);
    event.target.closest(".mark")?.setAttribute("tabindex", 0);
  });
  box.addEventListener("keydown", (event) => {
    const from = event.target.closest(".mark");
    if (!from || !KEYS.has(event.key) || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    next([...box.querySelectorAll(".mark")], from, event.key).focus();
  });
  new ResizeObserver(([entry]) => {
    const now = Math.floor(entry.contentRect.width);
    if (now && now !== width) {
      width = now;
      redraw();
    }
  }).observe(box);
  return h("figure", {}, box, told);
}

/** Steps of an axis around `least`, 0 or below, and `most`, 0 or above. */
function ticks(least, most, whole) {
  if (!(most - least > 0)) return [0, 1];
  const rough = (most - least) / 4;
  const size = 10 ** Math.floor(Math.log10(rough));
  let step = size * ([1, 2, 5, 10].find((n) => n * size >= rough * 0.999) ?? 10);
  if (whole) step = Math.max(1, step);
  const first = Math.floor(least / step + 1e-9);
  const last = Math.ceil(most / step - 1e-9);
  return Array.from({ length: last - first + 1 }, (_, n) => (first + n) * step);
}

const clipped = (text, characters) =>
  text.length > characters ? `${text.slice(0, Math.max(1, characters - 1))}…` : text;

/** Axes of an area: numbers upwards, labels below. */
function axes(width, height, labels, [least, most], format, whole) {
  const steps = ticks(least, most, whole);
  const [bottom, top] = [steps[0], steps[steps.length - 1]];
  const told = steps.map(format);
  const left = 10 + LABEL_PX * Math.max(...told.map((one) => one.length));
  const area = { left, top: 8, right: width - 12, bottom: height - 22 };
  const y = (value) => area.bottom - ((value - bottom) / (top - bottom)) * (area.bottom - area.top);
  const inside = steps.map((value, at) => [
    s("line", { class: "grid", x1: left, x2: area.right, y1: y(value), y2: y(value) }),
    s("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, told[at]),
  ]);
  const longest = Math.max(...labels.map((one) => one.length), 1) * LABEL_PX + 16;
  const every = Math.max(1, Math.ceil((labels.length * longest) / (area.right - left)));
  const band = (area.right - left) / Math.max(1, labels.length);
  const x = (at) => left + band * (at + 0.5);
  // From where on there is room for a label.
  let free = 0;
  labels.forEach((label, at) => {
    if (at % every) return;
    const half = (label.length * LABEL_PX) / 2;
    const middle = Math.min(Math.max(x(at), half), width - half);
    if (middle - half < free) return;
    free = middle + half;
    inside.push([s("text", { x: middle, y: height - 5, "text-anchor": "middle" }, label)]);
  });
  return {
    area,
    x,
    y,
    band,
    axes: s("g", { class: "axes", "aria-hidden": "true" }, inside.flat()),
  };
}

/** Which colour is what. @param {string[]} names @param {number[]} [shades] */
export function legend(names, shades = names.map((_, at) => at)) {
  return h(
    "ul",
    { class: "legend" },
    names.map((name, at) => h("li", {}, h("span", { class: `swatch ${color(shades[at])}` }), name)),
  );
}

/**
 * A line for each series.
 * @typedef {{ name: string, values: (number | null)[], href?: (at: number) => string | null }} Series
 * @param {string} label @param {string[]} labels @param {Series[]} series
 * @param {(value: number) => string} format of a figure
 * @param {{ axis?: (value: number) => string, whole?: boolean }} [more]
 */
export function lines(label, labels, series, format, { axis = brief, whole = false } = {}) {
  let [least, most] = [0, 0];
  for (const value of series.flatMap((one) => one.values)) {
    least = Math.min(least, value ?? 0);
    most = Math.max(most, value ?? 0);
  }
  const several = series.length > 1;
  const drawn = chart(label, (width) => {
    const height = 260;
    const { x, y, axes: behind } = axes(width, height, labels, [least, most], axis, whole);
    const paths = series.map(({ values }, n) => {
      let open = false;
      const d = values.map((value, at) => {
        if (value === null) return ((open = false), "");
        const step = `${open ? "L" : "M"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
        open = true;
        return step;
      });
      return s("path", { class: `curve ${color(n)}`, d: d.join("") || "M0 0" });
    });
    if (labels.length * series.length > MARKS_MAX) return [height, [behind, ...paths]];
    const marks = series.flatMap(({ name, values, href }, n) =>
      values.map((value, at) => {
        if (value === null) return null;
        const circles = [8, 3].map((r) =>
          s("circle", { cx: x(at), cy: y(value), r, class: r === 3 ? color(n) : "hit" }),
        );
        const told = `${labels[at]}${several ? `, ${name}` : ""}: ${format(value)}`;
        return mark(circles, told, n, at, href?.(at));
      }),
    );
    return [height, [behind, ...paths, ...marks.filter(Boolean)]];
  });
  return several ? h("div", {}, legend(series.map((one) => one.name)), drawn) : drawn;
}

/**
 * Columns of parts, one on the other.
 * @param {string} label @param {string[]} labels @param {{ name: string, values: number[], color: number }[]} parts
 * @param {(at: number) => string | null} href
 */
export function columns(label, labels, parts, href) {
  const sum = (at) => parts.reduce((total, part) => total + part.values[at], 0);
  const most = Math.max(0, ...labels.map((_, at) => sum(at)));
  const drawn = chart(label, (width) => {
    const height = 200;
    const { area, x, y, band, axes: behind } = axes(width, height, labels, [0, most], brief, true);
    const wide = Math.max(1, band - (band > 4 ? 2 : 0.5));
    const marks = labels.map((name, at) => {
      let below = 0;
      const shapes = parts.map(({ values, color: shade }) => {
        const [low, high] = [y(below), y(below + values[at])];
        below += values[at];
        return s("rect", {
          class: color(shade),
          x: x(at) - wide / 2,
          y: high,
          width: wide,
          height: low - high,
        });
      });
      shapes.push(
        s("rect", {
          class: "hit",
          x: x(at) - band / 2,
          y: area.top,
          width: band,
          height: area.bottom - area.top,
        }),
      );
      const told = parts.map((part) => `${part.values[at].toLocaleString("en")} ${part.name}`);
      return mark(shapes, `${name}: ${told.join(", ")}`, 0, at, sum(at) ? href(at) : null);
    });
    return [height, [behind, ...marks]];
  });
  return h(
    "div",
    {},
    legend(
      parts.map((part) => part.name),
      parts.map((part) => part.color),
    ),
    drawn,
  );
}

/**
 * A bar across for each row, below its heading.
 * @param {string} label @param {{ heading: string, bars: { value: number, told: string, color: number,
 * href?: string | null }[] }[]} rows
 * @param {number} most the value of a whole bar
 */
export function bars(label, rows, most) {
  return chart(label, (width) => {
    const [head, thick] = [20, 22];
    const longest = Math.max(
      ...rows.flatMap(({ bars: of }) => of.map(({ told }) => told.length)),
      0,
    );
    const room = Math.max(60, width - LABEL_PX * longest - 16);
    const inside = [];
    let top = 4;
    rows.forEach(({ heading, bars: of }, row) => {
      if (heading) {
        inside.push(
          s(
            "text",
            { class: "strong", x: 0, y: top + 14, "aria-hidden": "true" },
            clipped(heading, Math.floor(width / LABEL_PX)),
          ),
        );
        top += head;
      }
      of.forEach(({ value, told, color: shade, href }, n) => {
        const wide = most > 0 ? Math.max(1, (value / most) * room) : 1;
        const shapes = [
          s("rect", { class: "hit", x: 0, y: top, width, height: thick }),
          s("rect", {
            class: color(shade),
            x: 0,
            y: top + 2,
            width: wide,
            height: thick - 4,
            rx: 2,
          }),
          s(
            "text",
            { x: wide + 8, y: top + 15 },
            clipped(told, Math.floor((width - wide - 8) / LABEL_PX)),
          ),
        ];
        inside.push(mark(shapes, heading ? `${heading}, ${told}` : told, row, n, href));
        top += thick;
      });
      top += 8;
    });
    return [top, inside];
  });
}

/**
 * A table of shades from 0 to 1.
 * @param {string} label @param {string[]} across @param {string[]} down
 * @param {({ share: number, text: string, told: string, faint: boolean, href?: string | null } | null)[][]} cells
 */
export function heat(label, across, down, cells) {
  const most = Math.max(...cells.flat().map((one) => one?.share ?? 0), 0.0001);
  return chart(label, (width) => {
    const left = LABEL_PX * Math.max(...down.map((one) => one.length), 1) + 10;
    const wide = Math.max(40, (width - left) / Math.max(1, across.length));
    const thick = 26;
    const inside = [
      s(
        "g",
        { class: "axes", "aria-hidden": "true" },
        across.map((name, at) =>
          s("text", { x: left + wide * (at + 0.5), y: 14, "text-anchor": "middle" }, name),
        ),
        down.map((name, at) =>
          s("text", { x: left - 8, y: 22 + thick * (at + 0.6), "text-anchor": "end" }, name),
        ),
      ),
    ];
    cells.forEach((row, r) =>
      row.forEach((cell, c) => {
        if (!cell) return;
        const [x, y] = [left + wide * c, 20 + thick * r];
        const shade = Math.min(8, Math.round((8 * cell.share) / most));
        inside.push(
          mark(
            [
              s("rect", {
                class: `shade s${shade}${cell.faint ? " faint" : ""}`,
                x: x + 1,
                y: y + 1,
                width: wide - 2,
                height: thick - 2,
              }),
              s(
                "text",
                { class: `over s${shade}`, x: x + wide / 2, y: y + 17, "text-anchor": "middle" },
                cell.text,
              ),
            ],
            cell.told,
            r,
            c,
            cell.href,
          ),
        );
      }),
    );
    return [24 + thick * down.length, inside, left + wide * across.length];
  });
}

/**
 * What flows from node to node, step by step.
 * @param {string} label @param {{ key: string, name: string, value: number, told: string, plain: boolean,
 * href?: string | null }[][]} steps
 * @param {{ from: string, to: string, value: number, told: string }[]} links
 */
export function flow(label, steps, links) {
  const tall = Math.max(...steps.map((nodes) => nodes.length), 1);
  const whole = Math.max(
    ...steps.map((nodes) => nodes.reduce((sum, one) => sum + one.value, 0)),
    1,
  );
  return chart(label, (width) => {
    const [gap, thick, least] = [18, 10, 150];
    const column = Math.max(least, width / Math.max(1, steps.length));
    const height = Math.max(220, tall * 36) + 30;
    const scale = (height - 30 - gap * tall) / whole;
    const at = new Map();
    const inside = [];
    const nodes = steps.flatMap((of, step) => {
      let top = 26;
      inside.push(
        s(
          "text",
          { class: "strong", x: column * step, y: 14, "aria-hidden": "true" },
          `Step ${step + 1}`,
        ),
      );
      return of.map((node, n) => {
        const high = Math.max(2, node.value * scale);
        const [x, y] = [column * step, top];
        at.set(node.key, { x, y, out: y, in: y });
        top += high + gap;
        return mark(
          [
            s("rect", {
              class: "hit",
              x,
              y: y - 2,
              width: column - 20,
              height: Math.max(high, 14) + 4,
            }),
            s("rect", {
              class: node.plain ? "plain" : color(n),
              x,
              y,
              width: thick,
              height: high,
              rx: 2,
            }),
            s(
              "text",
              { class: "halo", x: x + thick + 5, y: y + Math.min(high / 2 + 4, 12) + 1 },
              clipped(
                `${node.name} ${brief(node.value)}`,
                Math.floor((column - thick - 12) / LABEL_PX),
              ),
            ),
          ],
          node.told,
          n,
          step,
          node.href,
        );
      });
    });
    const ribbons = links.map(({ from, to, value }) => {
      const [a, b] = [at.get(from), at.get(to)];
      if (!a || !b) return null;
      const high = Math.max(1, value * scale);
      const [x1, x2, y1, y2] = [a.x + thick, b.x, a.out + high / 2, b.in + high / 2];
      a.out += high;
      b.in += high;
      const bend = (x1 + x2) / 2;
      return s("path", {
        class: "ribbon",
        d: `M${x1} ${y1}C${bend} ${y1} ${bend} ${y2} ${x2} ${y2}`,
        "stroke-width": high,
      });
    });
    const behind = s("g", { "aria-hidden": "true" }, ribbons.filter(Boolean));
    return [height, [behind, ...inside, ...nodes], column * steps.length];
  });
}
