// The view of one prompt and seed across the checkpoints of a run: how it learned.

import { ApiError, streamText } from "./api.js";
import { element, fillSelect, number, say } from "./dom.js";
import { Fields } from "./fields.js";
import { state } from "./state.js";
import { glossary } from "./words.js";

const SHOWN = ["seed", "temperature", "max_tokens"];
const MAX_TOKENS = 200; // unless another number is given
const PLAY_MILLISECONDS = 3000;

export class TimeView {
  constructor(section) {
    this.texts = new Map(); // that were written, by checkpoint and request
    this.coming = {}; // the text that is being written
    this.checkpoints = [];
    this.body = null; // what was asked for last; null before, so that nothing is computed unasked
    this.run = element("select", { id: "time-run", onchange: () => this.update() });
    this.prompt = element("textarea", { id: "time-prompt", rows: 3, placeholder: "empty: the text begins after a line break" });
    this.fields = new Fields("time", state.options.sampling.filter(({ name }) => SHOWN.includes(name)));
    this.fields.showDefault("max_tokens", String(MAX_TOKENS));
    this.slider = element("input", { type: "range", id: "time-step", min: "0", max: "0", value: "0",
      oninput: () => this.move(), onchange: () => this.show() });
    this.play = element("button", { type: "button", onclick: () => this.playOrStop() }, "Play");
    this.title = element("h3");
    this.text = element("div", { className: "text", tabindex: "0", role: "region", "aria-label": "text at this step" });
    this.status = element("p", { role: "status", className: "status" });
    this.all = element("div", { className: "panels" });
    this.empty = element("p");
    this.controls = element("form", { onsubmit: (event) => { event.preventDefault(); this.write(); } },
      element("label", { for: "time-prompt" }, "Prompt: what the text begins with"), this.prompt, this.fields.node,
      element("div", { className: "buttons" }, element("button", { className: "main" }, "Write"), this.play),
      element("label", { for: "time-step" }, "Step of the training"), this.slider, this.title, this.text, this.status, this.all);
    section.append(element("h2", {}, "Time"),
      element("p", {}, "One prompt and seed, with the weights that the network had on the way. The early ones are of the network "
        + "alone, without counted n-grams. To see when it learned something, begin with it, such as with the first letters of a name, and try several seeds."),
      element("label", { for: "time-run" }, "Run"), this.run, this.empty, this.controls, glossary("the network alone", "best", "last", "run", "step",
        "weights", "token", "seed", "temperature", "val loss", "loss", "counted n-grams"));
  }

  // Begin with a prompt, unless there is one.
  offer(prompt) {
    if (!this.body) this.prompt.value ||= prompt;
  }

  // The checkpoints that there are now; the slider stays at the one that is chosen.
  update() {
    fillSelect(this.run, state.runs.map(({ name }) => name));
    const chosen = this.checkpoint;
    this.checkpoints = joinEqual(state.run(this.run.value)?.checkpoints ?? []);
    this.controls.hidden = !this.checkpoints.length;
    this.empty.hidden = !this.controls.hidden;
    this.empty.textContent = this.run.value ? "No checkpoint of this run is known by its step yet." : "There is no run yet: start one in Train.";
    this.slider.max = String(Math.max(this.checkpoints.length - 1, 0));
    const same = this.checkpoints.findIndex(({ model }) => model === chosen?.model);
    const ofStep = this.checkpoints.findLastIndex(({ step }) => step === chosen?.step); // `last` may be `best` by now
    this.slider.value = String(Math.max(same === -1 ? ofStep : same, 0));
    this.move();
  }

  get checkpoint() {
    return this.checkpoints[Number(this.slider.value)];
  }

  // Show the text of the chosen checkpoint, if it is written already.
  move() {
    const { checkpoint } = this;
    if (!checkpoint) return;
    this.slider.setAttribute("aria-valuetext", `step ${checkpoint.step}`);
    this.title.textContent = this.describe(checkpoint);
    this.text.replaceChildren(...this.written(checkpoint));
    const others = this.checkpoints.filter((candidate) => this.texts.has(this.key(candidate)));
    this.all.replaceChildren(...(others.length < 2 ? [] : others.map((other) => element("article", {},
      element("h4", {}, this.describe(other)), element("div", { className: "text" }, ...this.written(other))))));
  }

  describe(checkpoint) {
    const evaluation = state.run(this.run.value).evaluations.find(([step]) => step === checkpoint.step);
    const isAlone = checkpoint.name.startsWith("early_");
    const name = isAlone ? "the network alone" : checkpoint.isBoth ? "best and last" : checkpoint.name;
    return `Step ${checkpoint.step}: ${name}${evaluation ? `, val loss ${number(evaluation[isAlone ? 2 : 1], 4)}` : ""}`;
  }

  // The text of a checkpoint as far as it is written, after its prompt; nothing if there is none yet.
  written(checkpoint) {
    const key = this.key(checkpoint);
    const text = this.texts.get(key) ?? (this.coming.key === key ? this.coming.text : undefined);
    return text === undefined ? [] : [element("span", { className: "prompt" }, this.body.prompt ?? ""), text];
  }

  key(checkpoint) {
    return JSON.stringify([checkpoint, this.body]);
  }

  async write() {
    const prompt = this.prompt.value ? { prompt: this.prompt.value } : {};
    this.body = { ...prompt, max_tokens: MAX_TOKENS, ...this.fields.values() };
    await this.show();
  }

  // Write the text of the chosen checkpoint, unless it is there. A request before it that is not needed any more ends.
  async show() {
    this.abort?.abort();
    this.move();
    const { checkpoint, body } = this;
    say(this.status, "");
    if (!checkpoint || !body || this.texts.has(this.key(checkpoint))) return;
    const abort = this.abort = new AbortController();
    say(this.status, "writing");
    const coming = this.coming = { key: this.key(checkpoint), text: "" };
    try {
      await streamText({ model: checkpoint.model, ...body }, abort.signal, (part) => {
        coming.text += part;
        this.text.replaceChildren(...this.written(this.checkpoint));
      });
      this.texts.set(coming.key, coming.text);
      say(this.status, "");
      this.move();
    } catch (error) {
      if (error instanceof ApiError) say(this.status, error.message, true);
      else if (error.name !== "AbortError") throw error;
    }
  }

  async playOrStop() {
    this.isPlaying = !this.isPlaying;
    this.play.textContent = this.isPlaying ? "Stop" : "Play";
    if (!this.isPlaying || !this.controls.reportValidity()) return;
    for (let index = 0; this.isPlaying && index < this.checkpoints.length; index++) {
      this.slider.value = String(index);
      await this.write();
      await new Promise((resolve) => { setTimeout(resolve, PLAY_MILLISECONDS); });
    }
    this.isPlaying = false;
    this.play.textContent = "Play";
  }
}

// `last` and `best` of the same step have the same weights: one of them is shown.
function joinEqual(checkpoints) {
  const last = checkpoints.find(({ name }) => name === "last");
  const isBoth = ({ name, step }) => name === "best" && step === last?.step;
  if (!checkpoints.some(isBoth)) return checkpoints;
  return checkpoints.filter((checkpoint) => checkpoint !== last).map((checkpoint) => (
    isBoth(checkpoint) ? { ...checkpoint, isBoth: true } : checkpoint));
}
