// The view of the runs: their curves, and the trainings that the page starts.

import { ApiError, get, post } from "./api.js";
import { Curves } from "./curves.js";
import { element, number, scroller } from "./dom.js";
import { describeTrend, describeVerdict, RunDetail } from "./run_detail.js";
import { StartedTraining, TrainingForm } from "./start_training.js";
import { state } from "./state.js";
import { keepRuns, keptRuns } from "./typed.js";
import { glossary } from "./words.js";

const LISTED = { training: "training", finished: "finished", interrupted: "stopped", unfinished: "not finished" };

export class TrainView {
  constructor(section) {
    this.records = new Map(); // by run: the records, and the cursor after them
    this.chosen = new Set();
    this.runList = element("div", { className: "run-list", role: "group", "aria-label": "runs to show" });
    this.rows = new Map(); // by run: its checkbox and its text
    this.empty = element("p");
    this.detail = new RunDetail((path, body) => this.act(path, body));
    this.loss = new Curves("Loss: val loss with points; train loss dashed, which is of the network alone", "nats per token");
    this.rate = new Curves("Learning rate", "learning rate");
    this.problem = element("p", { role: "alert", className: "error", hidden: true });
    this.comparison = element("div");
    this.started = new StartedTraining();
    this.form = new TrainingForm((name) => this.showWhenThere(name));
    this.title = element("h2", {}, "Train");
    section.append(this.title, this.problem, this.runList, this.comparison, this.started.node, this.empty, this.detail.node, this.loss.node, this.rate.node,
      this.form.node, glossary("loss", "nats", "train loss", "val loss", "evaluation", "overfitting", "5-gram model",
        "counted n-grams", "step", "weights", "learning rate", "dropout", "max_iters", "patience", "preset", "tokenizer", "token", "seed"));
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
      const step = this.records.get(run.name)?.records.at(-1)?.step ?? run.step; // those of a chosen run come more often
      const progress = step === null ? "" : `, step ${step}${run.max_iters ? ` of ${run.max_iters}` : ""}`;
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
      this.updateRows();
      this.tell("");
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.tell(error.message);
    }
  }

  draw() {
    if (!this.awaited) keepRuns([...this.chosen]);
    this.compare([...this.chosen].map((name) => state.run(name)).filter(Boolean));
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

  // Several runs beside each other, and whether their losses can be compared.
  compare(runs) {
    const said = compareTexts(runs, this.records);
    const rows = runs.map((run) => [run.name, [LISTED[run.state]], [number(run.best_val_loss, 4)], [describeTrend(run)], describeVerdict(run)]);
    const key = JSON.stringify([said, runs]);
    if (key === this.compared) return;
    this.compared = key;
    const head = ["run", "state", "lowest val loss", "overfitting", "is its loss normal?"].map((title) => element("th", { scope: "col" }, title));
    const table = element("table", { className: "comparison" }, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows.map(([name, ...cells]) =>
      element("tr", {}, element("th", { scope: "row" }, name), ...cells.map((cell) => element("td", {}, ...cell))))));
    this.comparison.replaceChildren(...(runs.length < 2 ? [] : [element("p", { className: "status" }, said), scroller("the chosen runs beside each other", table)]));
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
