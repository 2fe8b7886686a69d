// Why a token came, in sentences: chance, counted n-grams, and where in the network it became the likeliest.

import { element, percent, visible } from "./dom.js";

// A heading and a list, of the token at a position of a reading. `drawn`: its chance to be drawn.
export function explain(reading, position, drawn) {
  const token = reading.tokens[position];
  const reasons = [fromChance(drawn), fromCounts(reading, position), fromNetwork(reading, position)];
  return [element("h4", {}, `Why “${visible(token.token)}”?`),
    element("ul", { className: "why" }, ...reasons.filter(Boolean).map((reason) => element("li", {}, reason)))];
}

function fromChance(drawn) {
  const often = Math.round(100 * drawn);
  if (drawn === 0) return "Not by chance: with the options above, the network never takes it here.";
  if (drawn === 1) return "Not by chance: with the options above, the network always takes it here.";
  const how = often === 0 ? "fewer than 1" : often === 100 ? "almost all" : `about ${often}`;
  return `Chance: of 100 draws at this place, with the options above, ${how} give it.`;
}

function fromCounts(reading, position) {
  const weight = reading.expert_weight;
  if (weight === undefined) return "";
  const { expert, network, model } = reading.tokens[position].probabilities;
  const known = reading.tokens[position - 1].expert_context;
  const context = reading.tokens.slice(position - known, position).map(({ token }) => token).join("");
  const from = known ? `they have counted what follows “${visible(context)}” in the text that was learned`
    : "they have not counted what follows the token before, so only how often each token occurs";
  return `Counted n-grams gave it ${percent(expert)}: ${from}. The network alone gave it ${percent(network)}. `
    + `Mixed, ${percent(weight)} of the first and ${percent(1 - weight)} of the second, that is ${percent(model)}.`;
}

function fromNetwork({ lens, tokens }, position) {
  if (!lens) return "";
  const { id, token } = tokens[position], { ngram_share: ngramShare } = tokens[position - 1];
  const others = lens.tokens.map((layer) => visible(layer[position - 1][0])); // the likeliest as block 1 begins, and after each block
  const last = lens.ids.findLastIndex((layer) => layer[position - 1][0] !== id); // where it was another one
  if (last === others.length - 1) return `In the network, “${others[last]}” is the likeliest at the end; “${visible(token)}” is not its first choice.`;
  if (last === -1) return `In the network, it is the likeliest before block 1 already: the last ${ngramShare === undefined ? "token says" : "few tokens say"} so.`;
  return `In the network, it is the likeliest from block ${last + 1} on; before that, “${others[last]}” was.`;
}
