// Why a token came, in sentences: chance, counted n-grams, and where in the network it became the likeliest.

import { chance, element, percent, visible } from "./dom.js";
import { FILTERS } from "./fields.js";

// A heading and a list, of the token at a position of a reading.
export function explain(reading, position) {
  const token = reading.tokens[position];
  const reasons = [fromChance(token), fromCounts(reading, position), fromNetwork(reading, position), reading.attention
    && "What the network looked back at to expect it: see Attention, below."];
  return [element("h4", {}, `Why “${visible(token.token)}”?`),
    element("ul", { className: "why" }, ...reasons.filter(Boolean).map((reason) => element("li", {}, reason)))];
}

function fromChance({ probabilities }) {
  const drawn = probabilities[FILTERS.at(-1)], often = Math.round(100 * drawn);
  if (drawn === 0) return "Not by chance: with the options above, the network never takes it here.";
  if (drawn === 1) return "Not by chance: with the options above, the network always takes it here.";
  const stages = ["model", ...FILTERS].map((stage) => chance(probabilities[stage]));
  const changes = FILTERS.filter((_, index) => stages[index + 1] !== stages[index]);
  const changed = changes.length ? ` Its probability of ${stages[0]} became ${stages.at(-1)} by ${changes.join(" and ")}, as set above.` : "";
  if (often === 0) return `Chance, and a rare one: ${drawn < 0.0005 ? chance(drawn) : `1 in ${Math.round(1 / drawn)}`} draws at this position gives it.${changed}`;
  return `Chance: of 100 draws at this position, ${often === 100 ? "almost all" : `about ${often}`} give it.${changed}`;
}

function fromCounts(reading, position) {
  const weight = reading.expert_weight;
  if (weight === undefined) return "";
  const { expert, network, model } = reading.tokens[position].probabilities;
  const known = reading.tokens[position - 1].expert_context;
  const context = reading.tokens.slice(position - known, position).map(({ token }) => token).join("");
  const from = known ? `they have counted what follows “${visible(context)}” in the text that was learned`
    : "they have not counted what follows the token before, so they know only how common each token is";
  return `Counted n-grams gave it ${chance(expert)}: ${from}. The network alone gave it ${chance(network)}. `
    + `Mixed, ${percent(weight)} of the first and ${percent(1 - weight)} of the second, that is ${chance(model)}.`;
}

function fromNetwork({ lens, tokens }, position) {
  if (!lens) return "";
  const { id, token } = tokens[position], { ngram_share: ngramShare } = tokens[position - 1];
  const likeliest = lens.tokens.map((layer) => visible(layer[position - 1][0])); // as block 1 begins, and after each block
  const last = lens.ids.findLastIndex((layer) => layer[position - 1][0] !== id); // where it was another token
  const { network } = tokens[position].probabilities;
  if (last === likeliest.length - 1) return `In the network, “${likeliest[last]}” is the likeliest in the end; “${visible(token)}” has ${chance(network)} there: not its first choice, ${network < 0.01 ? "and a rare one" : "but possible"}.`;
  if (last === -1) return `In the network, it is the likeliest even before block 1 has computed anything: the last ${ngramShare === undefined ? "token alone suggests" : "few tokens alone suggest"} it.`;
  return `In the network, it is the likeliest from block ${last + 1} on; before that, “${likeliest[last]}” was.`;
}
