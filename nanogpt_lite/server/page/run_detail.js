// The numbers of one run, and what can be done with it.

import { duration, element, number } from "./dom.js";
import { state } from "./state.js";

const MAX_SAMPLES = 8;
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
const STATES = {
  training: "training",
  interrupted: "stopped; its state is saved, and it can go on",
  unfinished: "not finished, and no process of this machine trains it; it can go on from its last checkpoint",
};

// Parts that did not change stay, with what was typed into them.
export class RunDetail {
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
    const [start, step, evaluation] = ["start", "step", "eval"].map(last);
    this.title.textContent = run.name;
    const reason = last("done")?.reason;
    const facts = [
      ["state", run.state === "finished" ? `finished${REASONS[reason] ? `: ${REASONS[reason]}` : ""}` : STATES[run.state]],
      ["step", `${records.at(-1)?.step ?? 0} of ${start?.max_iters ?? "?"}`],
      ["time left", run.state === "training" ? duration(secondsLeft(records, start)) : "–"],
      ["tokens per second", step ? Math.round(step.tokens_per_second).toLocaleString("en") : "–"],
      ["train loss", number(step?.loss, 4)],
      ["val loss", number(evaluation?.val_loss, 4)],
      ["lowest val loss", run.best_step === null ? "–" : `${number(run.best_val_loss, 4)}, of step ${run.best_step}`],
      ["learning rate", step ? step.learning_rate.toPrecision(3) : "–"],
      ["overfitting", describeTrend(run)],
    ];
    this.facts.replaceChildren(...facts.map(([name, value]) =>
      element("div", {}, element("dt", {}, name), element("dd", {}, value))));
    this.verdict.replaceChildren(element("strong", {}, "Is my loss normal? "), ...describeVerdict(run));
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
      required: needsMore, placeholder: needsMore ? `more than ${run.max_iters}` : String(run.max_iters ?? ""), "aria-label": "steps in all" });
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

// Whether the network learns its text by heart, in words: by the trend that the server tells.
export function describeTrend({ trend, evaluations, best_val_loss: lowest }) {
  if (!trend) return "not known before the second evaluation";
  const above = `the val loss is ${number(evaluations.at(-1)[1] - lowest, 4)} above its lowest`;
  return {
    lowest: "no: the val loss is at its lowest",
    noise: `hardly: ${above}`,
    overfitting: `yes: ${above}, while the train loss has fallen`,
    stalled: `no, but ${above}, and the train loss has not fallen: the training stalls`,
  }[trend];
}

// What is said about the loss; while a run is trained again, nothing: what there is is of the training before.
export function describeVerdict({ state: progress, verdict }) {
  return withCode((progress !== "training" && verdict) || "This is said when a training has ended by itself.");
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
