// The view of the runs: their curves, and the trainings that the page starts.

import { ApiError, get, post } from "./api.js";
import { Curves } from "./curves.js";
import { duration, element, fillSelect, glossary, number, say, WORDS } from "./dom.js";
import { Fields } from "./fields.js";
import { state } from "./state.js";
import { keepRuns, keptRuns } from "./typed.js";

const OFTEN_USED = ["minutes", "max_iters", "tokenizer"]; // options that the form shows first
const OWN_TEXT = "a text of your own";
const MAX_SAMPLES = 8;
const RISE = 0.01; // nats: less is noise, as in the sentence about the loss
const MAX_FILE_BYTES = 30_000_000; // the server takes a little more

export class TrainView {
  constructor(section) {
    this.records = new Map(); // by run: the records, and the cursor after them
    this.chosen = new Set();
    this.runList = element("div", { className: "run-list", role: "group", "aria-label": "runs to show" });
    this.rows = new Map(); // by run: its checkbox and its text
    this.empty = element("p");
    this.detail = new RunDetail((path, body) => this.act(path, body));
    this.loss = new Curves("Loss: val loss with points, train loss dashed", "nats per token");
    this.rate = new Curves("Learning rate", "learning rate");
    this.problem = element("p", { role: "alert", className: "error", hidden: true });
    this.comparison = element("p", { className: "status" });
    this.started = new StartedTraining();
    this.form = new TrainingForm((name) => this.showWhenThere(name));
    this.title = element("h2", {}, "Train");
    section.append(this.title, this.problem, this.runList, this.comparison, this.started.node, this.empty, this.detail.node, this.loss.node, this.rate.node,
      this.form.node, glossary({
        loss: "how much the next token surprises the network on average; lower is better",
        "train loss": "the loss on the text that it is trained on, during the training: of the network alone, and with dropout if there is any, so that it may be above the val loss",
        "val loss": "the loss on text that it is not trained on; with counted n-grams, if the run has them. The curve shows it at each evaluation, the list of runs the lowest one",
        overfitting: "the network learns its text by heart: its train loss falls, and the val loss rises",
        "5-gram model": "one that only counts which token followed the last four; a network should do better",
        step: "one change of the weights, by a few thousand tokens",
        "learning rate": "how much a step changes the weights",
        dropout: "leaving out random parts of the network in each step, so that it learns less by heart",
        max_iters: "the number of steps of a training",
        patience: "the number of evaluations without a lower val loss after which a training ends",
        preset: "a set of values for all options",
        tokenizer: "how a text is cut into tokens: char makes each character one, bpe joins the frequent ones",
        token: WORDS.token,
        seed: WORDS.seed,
      }));
  }

  update() {
    if (this.awaited && state.run(this.awaited)) { // a training that was started, and has a run by now
      this.chosen = new Set([this.awaited]);
      this.awaited = null;
    } else if (this.awaited && !state.training?.is_running) { // it has ended without one
      this.awaited = null;
      this.chosen = new Set(keptRuns());
    } else if (!this.hasChosen && state.runs.length) {
      const kept = keptRuns().filter((name) => state.run(name)); // before a reload
      const first = state.runs.find((run) => run.state === "training") ?? state.runOf(state.model) ?? state.runs[0];
      this.chosen = new Set(kept.length ? kept : [first.name]);
    }
    this.hasChosen ||= state.runs.length > 0;
    for (const name of this.records.keys()) if (!state.run(name)) this.records.delete(name);
    for (const name of this.chosen) if (!state.run(name)) this.chosen.delete(name);
    this.updateRows();
    this.started.update(this.awaited);
    this.form.update();
    this.fetchMissing();
  }

  // Show a run as soon as it is there.
  showWhenThere(name) {
    this.awaited = name;
    this.chosen.clear();
    this.update();
    this.title.scrollIntoView();
  }

  // The run whose numbers are shown in full: one that is being trained, or the first of the chosen ones.
  get main() {
    const chosen = [...this.chosen];
    return chosen.find((name) => state.run(name)?.state === "training") ?? chosen[0];
  }

  // Whether there may be news every second.
  get isLive() {
    return Boolean(state.training?.is_running) || this.stale().length > 0;
  }

  // The chosen runs whose records may have grown: those that are being trained, or were since they were read.
  stale() {
    return [...this.chosen].filter((name) => {
      const run = state.run(name);
      return run && (run.state === "training" || this.records.get(name)?.version !== run.version);
    });
  }

  // One row for each run; those that are there stay, with the focus.
  updateRows() {
    for (const run of state.runs) {
      if (!this.rows.has(run.name)) this.addRow(run.name);
      const { row, box, text } = this.rows.get(run.name);
      const progress = run.step === null ? "" : `, step ${run.step}${run.max_iters ? ` of ${run.max_iters}` : ""}`;
      const loss = run.best_val_loss === null ? "" : `, lowest val loss ${number(run.best_val_loss, 4)}`;
      row.className = `run ${run.state}`;
      box.checked = this.chosen.has(run.name);
      text.textContent = ` ${LISTED[run.state]}${progress}${loss}`;
    }
    for (const [name, { row }] of this.rows) {
      if (state.run(name)) continue;
      row.remove();
      this.rows.delete(name);
    }
  }

  addRow(name) {
    const toggle = () => {
      if (box.checked) this.chosen.add(name); else this.chosen.delete(name);
      this.fetchMissing();
    };
    const box = element("input", { type: "checkbox", onchange: toggle, id: `show-run-${name}` });
    const text = element("span");
    const row = element("label", {}, box, element("strong", {}, name), text);
    this.runList.append(row);
    this.rows.set(name, { row, box, text });
  }

  async fetchMissing() {
    for (const name of this.chosen) if (!this.records.has(name)) await this.fetch(name);
    this.draw();
  }

  // What is new of one of the chosen runs: one request.
  async poll() {
    const stale = this.stale();
    if (!stale.length) return;
    this.turn = ((this.turn ?? 0) + 1) % stale.length;
    await this.fetch(stale[this.turn]);
    this.draw();
  }

  async fetch(name) {
    const before = this.records.get(name) ?? { records: [], cursor: "" };
    const run = state.run(name);
    try {
      const after = encodeURIComponent(before.cursor);
      const { records, cursor, is_whole } = await get(`/api/runs/${encodeURIComponent(name)}/records?after=${after}`);
      this.records.set(name, { records: is_whole ? records : [...before.records, ...records], cursor, version: run?.version });
      this.tell("");
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.tell(error.message);
    }
  }

  draw() {
    if (!this.awaited) keepRuns([...this.chosen]);
    this.comparison.textContent = compareTexts([...this.chosen].map((name) => state.run(name)).filter(Boolean), this.records);
    const isOne = this.chosen.size === 1;
    const losses = [], rates = [];
    [...this.chosen].forEach((name, index) => {
      const records = this.records.get(name)?.records ?? [];
      const points = (kind, key) => records.filter((record) => record.kind === kind && typeof record[key] === "number")
        .map((record) => [record.step, record[key]]);
      const named = (label) => (isOne ? label : `${name}: ${label}`);
      losses.push({ name: named("val loss"), points: points("eval", "val_loss"), colour: index });
      losses.push({ name: named("train loss"), points: points("step", "loss"), colour: isOne ? 1 : index, isDashed: true });
      const alone = points("eval", "network_val_loss");
      if (isOne && alone.length) losses.push({ name: "val loss of the network alone", points: alone, colour: 2 });
      rates.push({ name: named("learning rate"), points: points("step", "learning_rate"), colour: index, isDashed: true });
    });
    for (const [curves, series] of [[this.loss, losses], [this.rate, rates]]) {
      curves.node.hidden = !series.some(({ points }) => points.length);
      if (!curves.node.hidden) curves.show(series);
    }
    const run = state.run(this.main);
    this.detail.show(run, this.records.get(this.main)?.records ?? []);
    this.empty.hidden = Boolean(run);
    this.empty.textContent = this.awaited ? `${this.awaited} is being prepared; its curves appear here in a moment.`
      : state.runs.length ? "Choose a run to see its curves."
      : "There is no run yet. Start a training below: a small network learns a text within a minute or two.";
  }

  tell(message) {
    this.problem.textContent = message;
    this.problem.hidden = !message;
  }

  async act(path, body) {
    try {
      await post(path, body);
      this.tell("");
      await state.refresh();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.tell(error.message);
    }
  }
}

// Whether the losses of runs can be compared, in words; empty for a single run.
function compareTexts(runs, records) {
  if (runs.length < 2) return "";
  const texts = runs.map((run) => run.data_sha256);
  const tokenizers = runs.map(({ name }) => records.get(name)?.records.findLast(({ kind }) => kind === "start")?.tokenizer);
  if (!texts.every(Boolean)) return "It is not known whether these runs learned the same text.";
  if (new Set(texts).size > 1) return "These runs did not learn the same text, so their losses cannot be compared.";
  if (!tokenizers.every(Boolean)) return ""; // their records come in a moment
  if (new Set(tokenizers).size > 1) return "These runs cut their text into different tokens, so their losses per token cannot be compared.";
  return "These runs learned the same text, so their losses can be compared: the lower one is better.";
}

const REASONS = { // of a training that has ended by itself
  max_iters: "all its steps are done",
  max_seconds: "its time was over",
  target_loss: "its target_loss is reached",
  patience: "its val loss did not fall any more (patience)",
};
const NOTES = { // on what going on would do
  max_iters: "Its learning rate has fallen to its end, so more steps change little; a new run with more steps learns more.",
  target_loss: "It has what it was to reach, and would end at once.",
  patience: "It ended before its last step, because its val loss did not fall any more, and would end at once; a new run with patience 0 takes all its steps.",
};
const ENDS_AT_ONCE = ["patience", "target_loss"];
const LISTED = { training: "training", finished: "finished", interrupted: "stopped", unfinished: "not finished" };
const STATES = {
  training: "training",
  interrupted: "stopped; its state is saved, and it can go on",
  unfinished: "not finished, and no process of this machine trains it; it can go on from its last checkpoint",
};

// The numbers of one run, and what can be done with it. Parts that did not change stay, with what was typed into them.
class RunDetail {
  constructor(act) {
    this.act = act;
    this.title = element("h3");
    this.facts = element("dl", { className: "facts" });
    this.verdict = element("p", { className: "verdict" });
    this.buttons = element("div", { className: "buttons" });
    this.samples = element("details");
    this.node = element("div", { hidden: true }, this.title, this.facts, this.verdict, this.buttons, this.samples);
  }

  show(run, records) {
    this.node.hidden = !run;
    if (!run) return;
    const last = (kind) => records.findLast((record) => record.kind === kind);
    const [start, step, evaluation, result] = ["start", "step", "eval", "result"].map(last);
    this.title.textContent = run.name;
    const evaluations = records.filter(({ kind }) => kind === "eval");
    const best = lowest(evaluations), reason = last("done")?.reason;
    const facts = [
      ["state", run.state === "finished" ? `finished${REASONS[reason] ? `: ${REASONS[reason]}` : ""}` : STATES[run.state]],
      ["step", `${records.at(-1)?.step ?? 0} of ${start?.max_iters ?? "?"}`],
      ["time left", run.state === "training" ? duration(secondsLeft(records, start)) : "–"],
      ["tokens per second", step ? Math.round(step.tokens_per_second).toLocaleString("en") : "–"],
      ["train loss", number(step?.loss, 4)],
      ["val loss", number(evaluation?.val_loss, 4)],
      ["lowest val loss", best ? `${number(best.val_loss, 4)}, of step ${best.step}` : "–"],
      ["learning rate", step ? step.learning_rate.toPrecision(3) : "–"],
      ["overfitting", overfitting(evaluations)],
    ];
    this.facts.replaceChildren(...facts.map(([name, value]) =>
      element("div", {}, element("dt", {}, name), element("dd", {}, value))));
    const verdict = run.state === "training" ? "" : result?.verdict ?? ""; // else it is of the training before
    this.verdict.replaceChildren(element("strong", {}, "Is my loss normal? "),
      ...withCode(verdict || "This is said when a training has ended by itself."));
    this.showButtons(run, run.state === "finished" ? reason : "");
    this.showSamples(run, records.filter(({ kind }) => kind === "sample"));
  }

  // `reason`: why the run has finished, if it has.
  showButtons(run, reason) {
    const isOurs = Boolean(state.training?.is_running) && state.training.name === run.name;
    const key = JSON.stringify([run.name, run.state, run.max_iters, isOurs, reason]);
    if (key === this.shownButtons) return;
    this.shownButtons = key;
    const path = `/api/runs/${encodeURIComponent(run.name)}`;
    const needsMore = reason === "max_iters"; // steps, to go on
    const steps = element("input", { type: "number", id: "more-steps", min: String((needsMore ? run.max_iters : run.step) + 1),
      required: needsMore, placeholder: String(run.max_iters ?? ""), "aria-label": "steps in all" });
    const resume = (event) => {
      event.preventDefault();
      this.act(`${path}/resume`, steps.value ? { options: { max_iters: Number(steps.value) } } : {});
    };
    const stop = (event) => {
      event.target.disabled = true;
      event.target.textContent = "Stopping";
      this.act(`${path}/stop`, {});
    };
    if (!state.options.can_train) this.buttons.replaceChildren();
    else if (isOurs) this.buttons.replaceChildren(element("button", { type: "button", onclick: stop }, "Stop, and save"));
    else if (run.state === "training") this.buttons.replaceChildren("It was not started by this server; Ctrl-C where it was stops it.");
    else {
      const form = element("form", { className: "buttons", onsubmit: resume }, element("button", {}, "Go on"), "up to step", steps);
      this.buttons.replaceChildren(...(ENDS_AT_ONCE.includes(reason) ? [] : [form]), element("small", {}, NOTES[reason] ?? ""));
    }
  }

  showSamples(run, samples) {
    this.samples.hidden = !samples.length;
    const key = JSON.stringify([run.name, samples.length, samples.at(-1)?.step]);
    if (key === this.shownSamples) return;
    this.shownSamples = key;
    const texts = samples.slice(-MAX_SAMPLES).reverse();
    this.samples.replaceChildren(element("summary", {}, `What it wrote on the way (${samples.length})`), ...texts.map((record) =>
      element("figure", {}, element("figcaption", {}, `step ${record.step}`), element("div", { className: "text" }, record.text))));
  }
}

// The evaluation with the lowest val loss.
function lowest(evaluations) {
  return evaluations.reduce((best, other) => (best && best.val_loss <= other.val_loss ? best : other), null);
}

// Whether the val loss has risen since its lowest value, while the train loss fell, in words. By the rule of the sentence
// about the loss (`diagnosis/verdict.py`), so that both say the same.
function overfitting(evaluations) {
  if (evaluations.length < 2) return "not known before the second evaluation";
  const best = lowest(evaluations), now = evaluations.at(-1);
  const risen = now.val_loss - best.val_loss;
  if (!(risen > 0)) return "no: the val loss is at its lowest";
  const above = `the val loss is ${number(risen, 4)} above its lowest`;
  if (risen <= RISE) return `hardly: ${above}`;
  const later = evaluations.filter(({ step }) => step > best.step).map((evaluation) => evaluation.train_loss);
  const mean = later.reduce((sum, loss) => sum + loss, 0) / later.length;
  return mean < Math.max(best.train_loss, now.network_val_loss ?? now.val_loss) ? `yes: ${above}, while the train loss has fallen`
    : `no, but ${above}, and the train loss has not fallen: the training does not get on`;
}

// A text, with what is between backticks as code.
function withCode(text) {
  return text.split("`").map((part, index) => (index % 2 ? element("code", {}, part) : part));
}

function secondsLeft(records, start) {
  const steps = records.filter(({ kind }) => kind === "step").slice(-10);
  if (steps.length < 2 || !start) return NaN;
  const [first, last] = [steps[0], steps.at(-1)];
  return ((start.max_iters - last.step) * (last.seconds - first.seconds)) / (last.step - first.step);
}

// The training that the server started last: whether it runs, and what it printed.
class StartedTraining {
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
class TrainingForm {
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
        fields.showDefault(name, fitted.includes(name) ? "follows from the text" : String(values[name] ?? value));
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
