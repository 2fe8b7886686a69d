// What starts a training, and what the server says about the one that it started last.

import { ApiError, post } from "./api.js";
import { element, fillSelect, say } from "./dom.js";
import { Fields } from "./fields.js";
import { state } from "./state.js";

const OFTEN_USED = ["minutes", "max_iters", "tokenizer"]; // options that the form shows first
const OWN_TEXT = "a text of your own";
const MAX_FILE_BYTES = 30_000_000; // the server takes a little more

// The training that the server started last: whether it runs, and what it printed.
export class StartedTraining {
  constructor() {
    this.status = element("p", { role: "status" });
    this.log = element("pre", { className: "log", role: "region", tabindex: "0", "aria-label": "what the training printed" });
    this.printed = element("details", {}, element("summary", {}, "What it printed"), this.log);
    this.node = element("div", { hidden: true }, this.status, this.printed);
    this.isNew = false;
  }

  // `isNew`: it has no curves yet, so what it prints is shown meanwhile.
  update(isNew) {
    const { training } = state;
    this.node.hidden = !training;
    if (!training) return;
    const { name, is_running: isRunning, exit_status: status, log } = training;
    const isStopped = status < 0 || status > 128; // by a signal
    const ended = status === 0 ? "has ended" : isStopped ? "was stopped" : `has ended with status ${status}`;
    const said = `The training of ${name} ${isRunning ? "is running" : ended}.`;
    const hasFailed = !isRunning && status !== 0 && !isStopped;
    if (this.said !== said) {
      this.said = said;
      say(this.status, said, hasFailed);
      if (hasFailed) this.printed.open = true;
    }
    if (Boolean(isNew) !== this.isNew) {
      this.isNew = Boolean(isNew);
      this.printed.open = this.isNew || hasFailed;
    }
    if (this.log.textContent !== log) {
      this.log.textContent = log;
      this.log.scrollTop = this.log.scrollHeight;
    }
  }
}

// The form that starts a training.
export class TrainingForm {
  constructor(onStart) {
    this.onStart = onStart;
    this.name = element("input", { id: "run-name", required: true, maxlength: "60", pattern: "[A-Za-z0-9_.\\-]+", title: "letters, digits, '_', '.' and '-', without spaces", autocomplete: "off", value: "mine" });
    this.dataset = element("select", { id: "run-dataset", onchange: () => this.update() });
    this.text = element("textarea", { id: "run-text", rows: 6, oninput: () => this.forgetFile() });
    this.fileText = null; // of a file, as it is: a textarea would change its line breaks
    this.file = element("input", { type: "file", id: "run-file", accept: "text/*,.txt,.md", onchange: () => this.readFile() });
    this.own = element("div", {}, element("label", { for: "run-text" }, "Text"), this.text,
      element("label", { for: "run-file" }, "or a file of UTF-8 text"), this.file);
    this.preset = element("select", { id: "run-preset", onchange: () => this.showDefaults() });
    const { training: all, network: ofNetwork } = state.options;
    const first = new Fields("train", all.filter(({ name }) => OFTEN_USED.includes(name)));
    const rest = all.filter(({ name }) => !OFTEN_USED.includes(name));
    const network = new Fields("train", rest.filter(({ name }) => ofNetwork.includes(name)));
    const training = new Fields("train", rest.filter(({ name }) => !ofNetwork.includes(name)));
    this.parts = [first, network, training];
    this.status = element("p", { role: "status" });
    this.button = element("button", { className: "main" }, "Start the training");
    const presets = ["", ...Object.keys(state.options.presets)];
    fillSelect(this.preset, presets, (name) => name || "one that fits the device");
    const form = element("form", { onsubmit: (event) => { event.preventDefault(); this.start(); } },
      element("label", { for: "run-name" }, "Name of the run"), this.name,
      element("label", { for: "run-dataset" }, "What it learns"), this.dataset, this.own,
      element("label", { for: "run-preset" }, "Preset: a set of option values"), this.preset,
      first.node, element("details", {}, element("summary", {}, "More options"),
        element("h4", {}, "The network"), network.node, element("h4", {}, "The training"), training.node),
      element("div", { className: "buttons" }, this.button));
    this.node = element("section", { "aria-label": "start a training", className: "start" },
      element("h3", {}, "Start a training"),
      ...(state.options.can_train ? [form] : [element("p", {}, "This server starts no trainings.")]), this.status);
    this.showDefaults();
    this.update();
  }

  // What the options have that are left as they are: by the preset, and by the text.
  showDefaults() {
    const preset = this.preset.value || state.options.default_preset;
    const values = state.options.presets[preset];
    const fitted = state.options.fitted[preset] ?? [];
    for (const fields of this.parts) {
      for (const { name, default: value } of fields.descriptions) {
        const used = state.options.training_defaults[name] ?? values[name] ?? value;
        fields.showDefault(name, fitted.includes(name) ? "follows from the text" : String(used));
      }
    }
  }

  update() {
    fillSelect(this.dataset, [...state.options.datasets, OWN_TEXT]);
    this.own.hidden = this.dataset.value !== OWN_TEXT;
  }

  forgetFile() {
    this.fileText = null;
    delete this.text.dataset.ofFile;
  }

  async readFile() {
    const [file] = this.file.files;
    if (!file) return;
    try {
      if (file.size > MAX_FILE_BYTES) throw new Error(`${file.name} is larger than 30 MB; train on it with the command nanogpt-lite train`);
      const decoder = new TextDecoder("utf-8", { fatal: true });
      this.fileText = decoder.decode(await file.arrayBuffer());
      this.text.value = this.fileText;
      this.text.dataset.ofFile = ""; // so it is not kept over a reload, where it would have other line breaks
      say(this.status, `${file.name}: ${file.size.toLocaleString("en")} bytes`);
    } catch (error) {
      say(this.status, error instanceof TypeError ? `${file.name} is not UTF-8 text; save it as UTF-8 first` : error.message, true);
    }
  }

  async start() {
    const source = this.dataset.value === OWN_TEXT ? { text: this.fileText ?? this.text.value } : { dataset: this.dataset.value };
    const options = Object.assign({}, ...this.parts.map((fields) => fields.values()));
    const preset = this.preset.value ? { preset: this.preset.value } : {};
    const name = this.name.value;
    this.button.disabled = true;
    say(this.status, "starting");
    try {
      await post("/api/trainings", { name, ...source, ...preset, options });
      await state.refresh();
      say(this.status, "");
      this.onStart(name);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      say(this.status, error.message, true);
    } finally {
      this.button.disabled = false;
    }
  }
}
