// The page: which view is shown, which network is chosen, and when the server is asked what is new.

import { ApiError } from "./api.js";
import { element, fillSelect } from "./dom.js";
import { LookView } from "./look.js";
import { state } from "./state.js";
import { TimeView } from "./time.js";
import { TrainView } from "./train.js";
import * as typed from "./typed.js";
import { WriteView } from "./write.js";

const TICK = 1000; // milliseconds between two requests at least
const QUIET_TICKS = 10; // between two looks at the list of runs, if nothing is being trained
const LIVE_TICKS = 5; // the same, if something is

const TITLES = { write: "Write", look: "Look inside", train: "Train", time: "Time" };

const problem = document.getElementById("problem");
const model = document.getElementById("model");
const views = {};
let shown = "write";
let isChosen = false; // the network, by the user

function show(name) {
  shown = name;
  for (const view of Object.keys(views)) document.getElementById(`view-${view}`).hidden = view !== shown;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${shown}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  model.parentElement.hidden = !["write", "look"].includes(shown); // the others have a choice of their own
  document.title = `${TITLES[shown]} – nanogpt_lite`;
  if (shown === "time") views.time.offer(views.write.prompt.value);
  views[shown].update();
}

function go(name) {
  location.hash = name;
  show(name);
}

// The view that the address names; null for another part of the page.
function named() {
  const name = location.hash.slice(1);
  return Object.hasOwn(TITLES, name) ? name : null;
}

function choose(name) {
  model.value = name;
  isChosen = true;
}

function update() {
  fillSelect(model, state.models);
  if (!isChosen && state.models.length) [model.value] = state.models;
  model.disabled = !state.models.length;
  views[shown].update();
}

async function tick(count) {
  const isLive = shown === "train" && views.train.isLive;
  const isAwaited = shown === "train" && views.train.awaited; // a run that will be there in a moment
  try {
    if (isAwaited || count % (isLive ? LIVE_TICKS : QUIET_TICKS) === 0) await state.refresh();
    else if (isLive) await views.train.poll();
    else return;
    problem.hidden = true;
  } catch (error) {
    tell(error);
  }
}

function tell(error) {
  if (!(error instanceof ApiError)) throw error;
  problem.textContent = error.message;
  problem.hidden = false;
}

async function keepAsking() {
  for (let count = 1; ; count++) {
    await new Promise((resolve) => { setTimeout(resolve, TICK); });
    // an error of the page itself is reported, and does not end the asking
    if (!document.hidden) await tick(count).catch((error) => setTimeout(() => { throw error; }));
  }
}

async function start() {
  try {
    await state.load();
  } catch (error) {
    tell(error);
    problem.append(" ", element("button", { type: "button", onclick: () => location.reload() }, "Try again"));
    return;
  }
  problem.hidden = true;
  const section = (name) => document.getElementById(`view-${name}`);
  views.write = new WriteView(section("write"), {
    onLook: (text, name, options, numGiven) => {
      choose(name);
      go("look");
      views.look.readText(text, options, numGiven);
    },
  });
  views.look = new LookView(section("look"), {
    onWriteOn: (text, name, options) => {
      choose(name);
      go("write");
      views.write.writeFrom(text, options);
    },
  });
  views.train = new TrainView(section("train"));
  views.time = new TimeView(section("time"));
  state.addEventListener("change", update);
  model.addEventListener("change", () => {
    isChosen = true;
    views[shown].update();
  });
  fillSelect(model, state.models);
  for (const view of [views.write, views.time]) view.update(); // which fills their selects
  typed.restore();
  addEventListener("pagehide", typed.keep);
  addEventListener("hashchange", () => named() && show(named()));
  // a value that is not valid is shown, also in a part that is closed
  addEventListener("invalid", (event) => event.target.closest("details")?.setAttribute("open", ""), { capture: true });
  if (!named()) history.replaceState(null, "", state.models.length ? "#write" : "#train");
  show(named());
  update();
  if (state.options.can_train) keepAsking(); // else each request may cost something, as on Modal
}

start();
