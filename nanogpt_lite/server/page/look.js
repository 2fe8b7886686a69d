// The view of what a network makes of a text: surprise, what it expected, attention, logit lens.

import { ApiError, post } from "./api.js";
import { AttentionPanel } from "./attention.js";
import { chance, element, number, percent, say, scroller, visible } from "./dom.js";
import { Fields, FILTERS } from "./fields.js";
import { state } from "./state.js";
import { explain } from "./why.js";
import { glossary } from "./words.js";

const LEVELS = [0.5, 1, 2, 4]; // nats; the colours are those of the terminal
const STAGES = { // of sampling, in their order: the heads of columns
  network: "by the network alone",
  expert: "by counted n-grams alone",
  model: "both, mixed",
  temperature: "after temperature",
  top_k: "after top_k",
  top_p: "after top_p",
  min_p: "after min_p",
};
const DRAWN = "chance to be drawn"; // the last stage
const STEPS = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1, Home: -Infinity, End: Infinity }; // by key
const LENS_TOKENS = 4; // of each layer

export class LookView {
  constructor(section, { onWriteOn }) {
    this.onWriteOn = onWriteOn;
    this.text = element("textarea", { id: "look-text", rows: 4 });
    this.fields = new Fields("look", [
      ...state.options.sampling.filter(({ name }) => FILTERS.includes(name)), ...state.options.inspection,
    ]);
    this.status = element("p", { role: "status", className: "status" });
    this.result = element("div");
    section.append(element("h2", {}, "Look inside"),
      element("p", {}, "The network reads a text. Before each token it has probabilities for all tokens; the less likely "
        + "it held the one that came, the more it was surprised."),
      element("form", { onsubmit: (event) => { event.preventDefault(); this.read(); } },
        element("label", { for: "look-text" }, "Text to read"), this.text,
        element("details", {}, element("summary", {}, "Options"), this.fields.node),
        element("div", { className: "buttons" }, element("button", { className: "main" }, "Read"))),
      this.status, this.result, glossary("token", "nats", "loss", "chance to be drawn",
        "counted n-grams", "n-gram embeddings", "vector", "attention", "block", "head", "logit lens", "temperature, top_k, top_p, min_p"));
  }

  update() {}

  // Read a text, of which the first `numGiven` characters are a prompt: the first token after them is chosen.
  async readText(text, options, numGiven) {
    this.text.value = text;
    this.fields.fill(FILTERS, options);
    await this.read(numGiven);
    this.reading?.list.focus();
  }

  async read(numGiven = 0) {
    const turn = this.turn = (this.turn ?? 0) + 1;
    say(this.status, "reading");
    this.result.replaceChildren();
    const model = state.model;
    try {
      const { reading, note } = await this.ask(model);
      if (turn !== this.turn) return;
      const areCharacters = reading.tokens.every(({ token }) => [...token].length === 1);
      say(this.status, `${model}: ${reading.tokens.length} tokens${areCharacters ? ", here one character each" : ""}; mean surprise ${number(reading.mean_surprise)} nats `
        + `per token, which is the loss on this text${note}`);
      const options = this.fields.values();
      this.reading = new Reading(reading, (text) => this.onWriteOn(text, model, options));
      this.result.replaceChildren(this.reading.node);
      this.reading.start(numGiven);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (turn !== this.turn) return;
      say(this.status, error.message, true);
    }
  }

  // The reading; of a text that is too long for attention or lens, without these.
  async ask(model) {
    const body = { model, text: this.text.value, ...this.fields.values() };
    const parts = { attention: true, lens: true };
    let note = "";
    for (;;) {
      try {
        return { reading: await post("/api/inspect", { ...body, ...parts }), note };
      } catch (error) {
        if (!parts[error.field]) throw error;
        parts[error.field] = false;
        note += `. Without ${error.field}: ${error.message}`;
      }
    }
  }
}

class Reading {
  constructor(reading, onWriteOn) {
    this.reading = reading;
    this.onWriteOn = onWriteOn;
    this.selected = 0;
    this.tokens = reading.tokens.map((token, position) => this.makeToken(token, position));
    this.next = element("span", { role: "option", "aria-selected": "false", className: "token next", "aria-label": "what comes next" }, "▸");
    this.next.addEventListener("click", () => this.select(reading.tokens.length));
    this.list = element("div", {
      className: "tokens", role: "listbox", tabindex: "0", "aria-label": "tokens, coloured by surprise; arrow keys move",
      onkeydown: (event) => this.move(event),
    }, ...this.tokens, this.next);
    [...this.tokens, this.next].forEach((token, position) => { token.id = `token-${position}`; });
    this.detail = element("div", { className: "detail" });
    this.attention = reading.attention ? new AttentionPanel(reading, [...this.tokens, this.next], this.list) : null;
    const both = element("div", { className: "beside" }, this.list, this.detail);
    this.node = element("div", {}, legend(), both, ...(this.attention ? [this.attention.node] : []));
  }

  // Choose the first token after `numGiven` characters; nothing comes before the first of all.
  start(numGiven) {
    const starts = []; // of the tokens, in characters
    this.reading.tokens.reduce((start, { token }) => (starts.push(start), start + token.length), 0);
    const first = starts.findIndex((start) => start >= numGiven);
    this.select(Math.min(Math.max(first === -1 ? this.tokens.length : first, 1), this.tokens.length));
  }

  makeToken(token, position) {
    const level = token.surprise === null ? 0 : LEVELS.filter((limit) => token.surprise >= limit).length;
    const title = token.surprise === null ? "the first token" : `${number(token.surprise)} nats`;
    const text = token.token === "" ? "◌" : token.token.replaceAll("\n", "⏎\n");
    return element("span", {
      role: "option", "aria-selected": "false", className: `token level-${level}`, title, onclick: () => this.select(position),
      "aria-label": `${visible(token.token)}, ${title}`,
    }, text);
  }

  move(event) {
    const steps = STEPS[event.key];
    if (steps === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    this.select(Math.min(Math.max(this.selected + steps, 0), this.tokens.length));
  }

  select(position) {
    const all = [...this.tokens, this.next];
    all[this.selected].setAttribute("aria-selected", "false");
    this.selected = position;
    all[position].setAttribute("aria-selected", "true");
    this.list.setAttribute("aria-activedescendant", all[position].id);
    all[position].scrollIntoView({ block: "nearest" });
    this.detail.replaceChildren(...this.describe(position));
    this.attention?.select(position);
  }

  describe(position) {
    const token = this.reading.tokens[position];
    const title = token ? `“${visible(token.token)}”` : "What comes next";
    const expected = position > 0 ? this.reading.tokens[position - 1].next : null;
    return [
      element("h3", {}, title), element("p", {}, token ? describeToken(token) : ""),
      ...(expected && token ? explain(this.reading, position) : []),
      ...(expected ? [this.expectations(expected, position)] : []),
      ...(this.reading.lens && position > 0 ? [lensTable(this.reading.lens, position - 1)] : []),
      ...(typeof token?.ngram_share === "number" ? [element("p", {},
        `Of the vector that enters the first block at this token, ${percent(token.ngram_share)} is from the n-gram embeddings.`)] : []),
    ];
  }

  // The likeliest tokens at a position, and the one that came: the chance to be drawn, and each stage that changes it.
  expectations(expected, position) {
    const actual = this.reading.tokens[position];
    const isListed = !actual || expected.some(({ id }) => id === actual.id);
    const candidates = isListed ? expected : [...expected, { token: actual.token, id: actual.id, ...actual.probabilities }];
    const all = Object.keys(STAGES).filter((stage) => stage !== "expert"), hasExpert = "expert" in candidates[0];
    const stages = all.filter((stage, index) => index === 0 || candidates.some((token) => chance(token[stage]) !== chance(token[all[index - 1]])));
    const unused = all.filter((stage) => !stages.includes(stage) && (stage !== "model" || hasExpert));
    const last = stages.pop(), earlier = stages;
    if (hasExpert) earlier.splice(1, 0, "expert");
    const before = this.reading.tokens.slice(0, position).map(({ token }) => token).join("");
    const titles = ["token", DRAWN, "take this one", ...earlier.map((stage) => STAGES[stage])];
    const head = element("tr", {}, ...titles.map((title) => element("th", { scope: "col" }, title)));
    const rows = candidates.map((candidate) => element("tr", candidate.id === actual?.id ? { className: "actual" } : {},
      element("th", { scope: "row" }, visible(candidate.token)),
      barCell(candidate[last]),
      element("td", {}, candidate.token && !candidate.token.includes("\ufffd") ? element("button", {
        type: "button", className: "small", onclick: () => this.onWriteOn(before + candidate.token),
        "aria-label": `write on with ${visible(candidate.token)}`,
      }, "write on") : ""),
      ...earlier.map((stage) => barCell(candidate[stage]))));
    const end = FILTERS.includes(last) ? `; the chance is the probability ${STAGES[last]}` : "";
    const how = earlier.length ? ` On the right is how it came about${end}.` : "";
    const rest = unused.length ? ` Nothing here is changed by ${unused.map((stage) => (stage === "model" ? "counted n-grams" : stage)).join(", ")}.` : "";
    const came = isListed ? "" : " The last row is the token that came.";
    return element("figure", {}, element("figcaption", {}, `What the network expected here.${how}${rest}${came} “write on” takes another token, and writes on from there.`),
      scroller("expected tokens", element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows))));
  }
}

function describeToken({ surprise, rank, probabilities }) {
  if (surprise === null) return "Nothing comes before the first token, so it has no surprise.";
  const likelier = rank === 0 ? "no token was" : rank === 1 ? "one token was" : `${rank} tokens were`;
  return `Its probability was ${chance(probabilities.model)}, which is a surprise of ${number(surprise)} nats; ${likelier} likelier.`;
}

function legend() {
  const limits = [0, ...LEVELS];
  const names = limits.map((limit, level) => element("span", { className: `token level-${level}` },
    level === LEVELS.length ? ` ${limit} or more ` : ` ${limit} to ${limits[level + 1]} `));
  return element("p", { className: "legend" }, "Surprise in nats: ", ...names, ". Choose a token to see more of it.");
}

function barCell(probability) {
  const bar = element("span", { className: "bar" });
  bar.style.width = `${Math.round(100 * probability)}%`;
  return element("td", { className: "probability" }, bar, element("span", {}, chance(probability)));
}

// What the output layer makes of the vector after each block.
function lensTable(lens, position) {
  const last = lens.tokens.length - 1;
  const rows = lens.tokens.map((layer, index) => element("tr", {},
    element("th", { scope: "row" }, index === 0 ? "input of block 1" : index === last ? `block ${index}: the network's output` : `after block ${index}`),
    ...layer[position].slice(0, LENS_TOKENS).map((token, place) =>
      element("td", {}, `${visible(token)} ${percent(lens.probabilities[index][position][place])}`))));
  return element("figure", {}, element("figcaption", {}, "Logit lens: the likeliest tokens if the network ended after each of its blocks."),
    scroller("logit lens", element("table", { className: "lens" }, element("tbody", {}, ...rows))));
}
