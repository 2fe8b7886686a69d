// Curves of records against steps, by uPlot; also as a table, for those who cannot see them.

import { DARK, element, number, scroller } from "./dom.js";
import uPlot from "./vendor/uPlot.esm.js";

const COLOURS = ["#1d4ed8", "#c2410c", "#15803d", "#7e22ce", "#a16207", "#be185d"];
const COLOURS_ON_DARK = ["#93c5fd", "#fdba74", "#86efac", "#d8b4fe", "#fde047", "#f9a8d4"];
const MAX_ROWS = 400; // of the table

const rounded = (value, digits) => String(Number(value.toPrecision(digits)));

// Of an axis: as many decimals as the distance of its ticks needs, such as two for 0.25.
export function tickLabels(plot, ticks, axis, space, distance) {
  let decimals = 0;
  while (decimals < 12 && Math.abs(Number(distance.toFixed(decimals)) - distance) > distance / 1000) decimals += 1;
  return ticks.map((value) => value.toFixed(decimals));
}

// Of the legend: what each series has at the step, and nothing of another step.
const sameStep = (plot, series, index) => index;

export class Curves {
  // `title`, `unit`: of the values. `series` of `show`: name, points [[step, value], …], isDashed.
  constructor(title, unit) {
    this.title = title;
    this.unit = unit;
    this.picture = element("div", { className: "curves", role: "img" });
    this.summary = element("summary");
    this.rows = element("tbody");
    const head = ["curve", "step", unit].map((title) => element("th", { scope: "col" }, title));
    const table = element("table", {}, element("thead", {}, element("tr", {}, ...head)), this.rows);
    const points = scroller(`points of ${title}`, table);
    points.classList.add("tall");
    this.points = element("details", {}, this.summary, points);
    this.points.addEventListener("toggle", () => this.fillTable());
    this.node = element("figure", {}, element("figcaption", {}, title), this.picture, this.points);
    this.series = [];
    new ResizeObserver(() => this.resize()).observe(this.node);
    DARK.addEventListener("change", () => this.show(this.series));
  }

  show(series) {
    this.series = series;
    const last = series.map(({ name, points }) => (points.length ? `${name} ${number(points.at(-1)[1], 4)}` : name));
    this.picture.setAttribute("aria-label", `${this.title} against steps: ${last.join(", ") || "no points yet"}`);
    const data = series.length ? uPlot.join(series.map(({ points }) => [points.map(([x]) => x), points.map(([, y]) => y)])) : [[]];
    const names = series.map(({ name, isDashed, points }) => `${name}${isDashed}${points.length === 1}`).join("\n");
    if (this.plot && this.names === names && !this.isOtherScheme()) this.plot.setData(data);
    else this.make(data, names);
    const count = this.numPoints();
    this.summary.textContent = `The points as a table${count > MAX_ROWS ? ` (the last ${MAX_ROWS} of ${count})` : ""}`;
    if (this.points.open) this.fillTable();
  }

  make(data, names) {
    this.plot?.destroy();
    this.names = names;
    this.ink = getComputedStyle(document.body).color;
    const colours = DARK.matches ? COLOURS_ON_DARK : COLOURS;
    const axis = { stroke: this.ink, grid: { stroke: "#8884", width: 1 }, ticks: { stroke: "#8884" } };
    const lines = this.series.map(({ name, colour, isDashed, points }) => ({
      label: name, stroke: colours[colour % colours.length], width: 2, spanGaps: true, points: { show: !isDashed || points.length === 1, size: 6 },
      ...(isDashed ? { dash: [4, 4] } : {}), value: (_, value) => number(value, 4),
    }));
    const size = { width: Math.max(this.node.clientWidth, 200), height: 260 };
    const options = {
      ...size, scales: { x: { time: false } }, axes: [{ ...axis, label: "step" },
        { ...axis, label: this.unit, size: 64, values: tickLabels }],
      series: [{ label: "step" }, ...lines], cursor: { drag: { x: true, y: false }, dataIdx: sameStep },
    };
    this.plot = new uPlot(options, data, this.picture);
  }

  isOtherScheme() {
    return this.ink !== getComputedStyle(document.body).color;
  }

  resize() {
    if (this.plot && this.node.clientWidth) this.plot.setSize({ width: this.node.clientWidth, height: 260 });
  }

  fillTable() {
    const rows = this.series.flatMap(({ name, points }) => points.map(([step, value]) => element("tr", {},
      element("td", {}, name), element("td", {}, String(step)), element("td", {}, rounded(value, 7)))));
    this.rows.replaceChildren(...rows.slice(-MAX_ROWS));
  }

  numPoints() {
    return this.series.reduce((sum, { points }) => sum + points.length, 0);
  }
}
