// The commands that give what the page shows.

import { hasToken } from "./api.js";
import { copyButton, element } from "./dom.js";
import { state } from "./state.js";

const quote = (text) => (/^[A-Za-z0-9_./:=,-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
const flag = ([name, value]) => quote(`--${name}=${typeof value === "boolean" ? (value ? "True" : "False") : value}`);

// The command line that writes the text of a network; empty if there is none.
export function sampleCommand(model, prompt, words) {
  const run = state.runOf(model);
  if (!run || prompt.startsWith("FILE:")) return ""; // which would be the name of a file
  const checkpoint = run.checkpoints.find((candidate) => candidate.model === model)?.name ?? "best";
  const options = [["out_dir", run.folder], ...Object.entries(state.options.load), ...(checkpoint === "best" ? [] : [["checkpoint", checkpoint]])];
  const start = prompt ? [["start", prompt]] : [];
  return ["nanogpt-lite sample", ...[...options, ...start, ...words].map(flag)].join(" ");
}

export function curlCommand(body) {
  const token = hasToken() ? " -H 'Authorization: Bearer TOKEN'" : "";
  const text = JSON.stringify({ ...body, stream: true }).replaceAll("'", "'\\''");
  return `curl -N${token} ${location.origin}/v1/completions -d '${text}'`;
}

// A part of the page that shows commands, each with a button that copies it.
export function commandList(commands) {
  const rows = commands.filter(Boolean).map((command) =>
    element("div", { className: "command" }, element("code", {}, command), copyButton("Copy", () => command)));
  return element("details", {}, element("summary", {}, "The same by a command"), ...rows);
}
