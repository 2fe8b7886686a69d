// The view in which networks write.

import { streamText } from "./api.js";
import { commandList, curlCommand, sampleCommand } from "./commands.js";
import { copyButton, element, fillSelect, say } from "./dom.js";
import { Fields, FILTERS } from "./fields.js";
import { state } from "./state.js";
import { glossary } from "./words.js";

const MAX_EARLIER = 10; // texts before the last one

export class WriteView {
  constructor(section, { onLook }) {
    this.onLook = onLook;
    this.prompt = element("textarea", { id: "prompt", rows: 3, placeholder: "empty: the text begins after a line break" });
    this.fields = new Fields("write", state.options.sampling.filter(({ name }) => name !== "n"));
    this.compares = element("input", { type: "checkbox", id: "compare" });
    this.other = element("select", { id: "other", "aria-label": "the second network", onchange: () => { this.isOtherChosen = this.other.value !== anotherThan(state.model); } });
    this.stopButton = element("button", { type: "button", disabled: true, onclick: () => this.stop() }, "Stop");
    this.panels = element("div", { className: "panels" });
    this.earlier = element("details", { hidden: true }, element("summary", {}, "Texts before"));
    this.form = element("form", { onsubmit: (event) => { event.preventDefault(); this.write(); } },
      element("label", { for: "prompt" }, "Prompt: what the text begins with"), this.prompt,
      element("details", {}, element("summary", {}, "Options"), this.fields.node),
      element("p", {}, element("label", { for: "compare" }, this.compares, " beside another network, with the same seed: "),
        this.other),
      element("div", { className: "buttons" }, element("button", { className: "main" }, "Write"),
        element("button", { type: "button", onclick: () => this.form.reportValidity() && this.writeAnother() }, "With another seed"),
        this.stopButton));
    section.append(element("h2", {}, "Write"),
      element("p", {}, "The network continues the prompt, token by token. The same prompt, seed and options give the same text, also after a reload, which forgets the texts."),
      this.form, this.panels, this.earlier, glossary("network", "run", "step", "weights", "token", "seed", "temperature", "val loss", "loss"));
  }

  update() {
    fillSelect(this.other, state.models);
    if (!this.isOtherChosen) this.other.value = anotherThan(state.model);
  }

  // Write on from a text.
  async writeFrom(text, options) {
    this.prompt.value = text;
    this.fields.fill(FILTERS, options);
    this.prompt.focus();
    await this.write();
  }

  async writeAnother() {
    this.fields.fill(["seed"], { seed: Math.floor(Math.random() * 1e6) });
    await this.write();
  }

  stop() {
    this.abort?.abort();
  }

  async write() {
    this.stop();
    const abort = this.abort = new AbortController();
    const models = this.compares.checked ? [state.model, this.other.value] : [state.model];
    const panels = models.map((model) => new Panel(model, this.prompt.value, this.fields, this.onLook));
    this.earlier.firstChild.after(...this.panels.children); // the newest first
    while (this.earlier.children.length > MAX_EARLIER + 1) this.earlier.lastChild.remove();
    this.earlier.hidden = this.earlier.children.length === 1;
    this.panels.replaceChildren(...panels.map((panel) => panel.node));
    this.stopButton.disabled = false;
    for (const panel of panels) await panel.write(abort.signal); // one after the other, as the server computes
    if (this.abort === abort) this.stopButton.disabled = true;
  }
}

const anotherThan = (model) => state.models.find((name) => name !== model) ?? model;

class Panel {
  constructor(model, prompt, fields, onLook) {
    const options = fields.values();
    this.body = { model, ...(prompt ? { prompt } : {}), ...options };
    this.status = element("p", { role: "status", className: "status" }, "waiting");
    this.text = element("span");
    const whole = () => prompt + this.text.textContent;
    this.node = element("article", { "aria-label": `text of ${model}` },
      element("h3", {}, model),
      element("div", { className: "text", tabindex: "0", role: "region", "aria-label": `what ${model} wrote` }, element("span", { className: "prompt" }, prompt), this.text),
      this.status,
      element("div", { className: "buttons" },
        copyButton("Copy the text", whole),
        element("button", { type: "button", className: "small", onclick: () => onLook(whole(), model, options, prompt.length) }, "Look inside")),
      commandList([sampleCommand(model, prompt, fields.words()), curlCommand(this.body)]));
  }

  // Add a part of the text, and follow its end, unless the reader has scrolled up.
  add(text) {
    const box = this.text.parentElement;
    const isAtEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
    this.text.append(text);
    if (isAtEnd) box.scrollTop = box.scrollHeight;
  }

  async write(signal) {
    const started = performance.now();
    const since = () => `${((performance.now() - started) / 1000).toFixed(1)} s`;
    if (signal.aborted) {
      this.status.textContent = "stopped";
      return;
    }
    this.status.textContent = "writing";
    try {
      const reason = await streamText(this.body, signal, (text) => this.add(text));
      const ending = reason === "stop" ? "up to the stop text" : "cut there by max_new_tokens";
      this.status.textContent = `done after ${since()}: ${[...this.text.textContent].length} characters, ${ending}`;
    } catch (error) {
      const isStopped = error.name === "AbortError";
      say(this.status, isStopped ? `stopped after ${since()}` : error.message, !isStopped);
    }
  }
}
