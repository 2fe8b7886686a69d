// Attention: arcs over the text, a matrix of each head, and a table of what each head looks at.

import { DARK, element, percent, scroller, svg, visible } from "./dom.js";

const SMALLEST = 0.03; // of the attention of a token, for an arc
const CELL_PIXELS = 3;
const MARKED = 0.1; // the smallest share of attention that is marked in the table
const AS_LARGE = 0.9; // of the largest share: what is above it is marked too
const MOSTLY = 0.5;
const LIST = new Intl.ListFormat("en");
const POSITIONS = ["itself", "one before it", "two before it", "the first token", "all others"];

export class AttentionPanel {
  constructor(reading, tokens, list) {
    this.reading = reading;
    this.tokens = tokens; // their elements, and that of what comes next
    this.list = list;
    this.position = 0; // of the chosen token
    const layers = reading.attention.length, heads = reading.attention[0].length;
    this.layer = select("attention-layer", layers, () => this.draw());
    this.head = select("attention-head", heads, () => this.draw());
    this.arcs = svg("svg", { class: "arcs", "aria-hidden": "true" });
    list.append(this.arcs);
    this.weights = element("p", { id: "attention-weights" });
    this.matrices = element("div", { className: "matrices" });
    this.node = element("section", { "aria-label": "attention" },
      element("h3", {}, "Attention"),
      element("p", {}, "Before the chosen token came, the network stood at the token before it, and each head looked back from there. "
        + "The arcs over the text are to what one head looked at. Of a matrix, a row is a token, and its columns are those that it looks at: the stronger its colour, the more."),
      element("p", {}, element("label", { for: "attention-layer" }, "Block "), this.layer,
        element("label", { for: "attention-head" }, " Head "), this.head),
      this.weights, this.matrices, headTable(reading.attention));
    new ResizeObserver(() => this.drawArcs()).observe(list);
    this.drawMatrices();
  }

  select(position) {
    this.position = position;
    this.draw();
  }

  draw() {
    this.drawArcs();
    for (const figure of this.matrices.querySelectorAll("figure")) {
      const isChosen = figure.dataset.head === this.head.value && figure.dataset.layer === this.layer.value;
      figure.classList.toggle("chosen", isChosen);
      figure.querySelector("button").setAttribute("aria-pressed", String(isChosen));
    }
    this.weights.textContent = this.position ? this.describeWeights() : "Nothing comes before the first token: choose a later one.";
  }

  describeWeights() {
    const from = this.position - 1;
    const name = (index) => `“${visible(this.reading.tokens[index].token)}”`;
    const top = this.row().slice(0, this.position).map((weight, index) => [weight, index]).sort((a, b) => b[0] - a[0]).slice(0, 5);
    const listed = top.map(([weight, index]) => `${name(index)} ${distance(from - index)} ${percent(weight)}`);
    const expected = this.position < this.reading.tokens.length ? name(this.position) : "what comes next";
    return `To expect ${expected}, this head looked from ${name(from)} at ${listed.join(", ")}.`;
  }

  // What the token before the chosen one looks at.
  row() {
    return this.position ? this.reading.attention[this.layer.value][this.head.value][this.position - 1] : [];
  }

  drawArcs() {
    const frame = this.list.getBoundingClientRect();
    if (!frame.width) return;
    const centre = (index) => {
      const box = this.tokens[index].getClientRects()[0];
      return box && [box.left + box.width / 2 - frame.left, box.top - frame.top + this.list.scrollTop];
    };
    this.arcs.setAttribute("width", 0); // it is a part of what is measured
    this.arcs.setAttribute("height", 0);
    this.arcs.setAttribute("width", this.list.scrollWidth);
    this.arcs.setAttribute("height", this.list.scrollHeight);
    const to = centre(this.position);
    const drawn = this.row().map((weight, index) => {
      const from = centre(index);
      if (weight < SMALLEST || index >= this.position || !from || !to) return null;
      const height = 8 + Math.min(Math.abs(to[0] - from[0]) / 4, 30);
      const path = `M${from[0]},${from[1]} Q${(from[0] + to[0]) / 2},${Math.min(from[1], to[1]) - height} ${to[0]},${to[1]}`;
      return svg("path", { d: path, "stroke-width": 1 + 4 * weight, "stroke-opacity": 0.25 + 0.75 * weight });
    });
    this.arcs.replaceChildren(...drawn.filter(Boolean));
  }

  // A matrix of each head: a row is a token, its columns those that it attends to, relative to the largest of the row.
  drawMatrices() {
    this.reading.attention.forEach((heads, layer) => heads.forEach((weights, head) => {
      const canvas = matrix(weights);
      const choose = () => { this.layer.value = layer; this.head.value = head; this.draw(); };
      const button = element("button", { type: "button", className: "matrix", onclick: choose, "aria-label": `choose block ${layer + 1}, head ${head + 1}` }, canvas);
      const figure = element("figure", {}, button, element("figcaption", {}, `block ${layer + 1}, head ${head + 1}`));
      Object.assign(figure.dataset, { layer, head });
      this.matrices.append(figure);
    }));
  }
}

function select(id, length, onchange) {
  const options = Array.from({ length }, (_, index) => element("option", { value: String(index) }, String(index + 1)));
  return element("select", { id, onchange }, ...options);
}

const distance = (steps) => (steps === 0 ? "(itself)" : steps === 1 ? "(one before it)" : `(${steps} before it)`);

function matrix(weights) {
  const size = weights.length;
  const canvas = element("canvas", { width: size, height: size });
  canvas.style.width = `${Math.min(Math.max(size * CELL_PIXELS, 96), 220)}px`;
  const context = canvas.getContext("2d");
  const image = context.createImageData(size, size);
  weights.forEach((row, y) => {
    const largest = Math.max(...row);
    row.forEach((weight, x) => {
      image.data.set([...(DARK.matches ? [147, 197, 253] : [29, 78, 216]), Math.round(255 * weight / largest)], 4 * (y * size + x));
    });
  });
  context.putImageData(image, 0, 0);
  return canvas;
}

// Of each head, how its attention is spread over positions, on average over the tokens of the text.
function headShares(weights) {
  const sums = POSITIONS.map(() => 0);
  weights.forEach((row, y) => row.slice(0, y + 1).forEach((weight, x) => {
    const position = x === y ? 0 : x === y - 1 ? 1 : x === y - 2 ? 2 : x === 0 ? 3 : 4;
    sums[position] += weight / weights.length;
  }));
  return sums;
}

function headTable(attention) {
  const heads = attention.flatMap((ofLayer, layer) => ofLayer.map((weights, head) => (
    { name: `block ${layer + 1}, head ${head + 1}`, shares: headShares(weights) })));
  const largest = POSITIONS.map((_, index) => Math.max(...heads.map(({ shares }) => shares[index])));
  const isMarked = (share, index) => heads.length > 1 && share >= MARKED && share >= AS_LARGE * largest[index];
  const back = POSITIONS.indexOf("one before it");
  const marked = heads.filter(({ shares }) => isMarked(shares[back], back)).map(({ name }) => name);
  const share = largest[back] < MOSTLY ? `, though with less than half of ${marked.length > 1 ? "their" : "its"} attention` : "";
  const said = marked.length ? ` Most of all, ${LIST.format(marked)} ${marked.length > 1 ? "look" : "looks"} at the token one before${share}.` : "";
  const rows = heads.map(({ name, shares }) => element("tr", {}, element("th", { scope: "row" }, name),
    ...shares.map((share, index) => element("td", isMarked(share, index) ? { className: "largest" } : {}, percent(share)))));
  const head = element("tr", {}, ...["", ...POSITIONS].map((title) => (title ? element("th", { scope: "col" }, title) : element("td"))));
  return element("figure", {}, element("figcaption", {}, `Where each head looks from a token, on average over this text. Marked: the heads that look there most.${said}`),
    scroller("where each head looks", element("table", { className: "heads" }, element("thead", {}, head), element("tbody", {}, ...rows))));
}
