// What all views share: the runs, the options, and the network that is chosen. A change is an event "change".

import { get } from "./api.js";

class State extends EventTarget {
  runs = [];
  models = []; // the names of the networks
  training = null; // what the server started last
  options = null;

  async load() {
    this.options = await get("/api/options");
    await this.refresh();
  }

  async refresh() {
    const { runs, models, training } = await get("/api/runs");
    Object.assign(this, { runs, models, training });
    this.dispatchEvent(new Event("change"));
  }

  run(name) {
    return this.runs.find((run) => run.name === name);
  }

  // The run that a network is of; none of one that was given to the server without its run.
  runOf(model) {
    return this.runs.find((run) => run.models.includes(model));
  }

  get model() {
    return document.getElementById("model").value;
  }
}

export const state = new State();
