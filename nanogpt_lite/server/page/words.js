// The words that the page uses and not everybody knows. Each view lists those that it uses.

import { element } from "./dom.js";

const MEANINGS = {
  network: "what writes: the weights of a run at one time. A run's name alone: those with the lowest val loss; /last: those after the last step; /early_000005: those after step 5",
  "the network alone": "the weights of that step, without the counted n-grams, which a finished run may have",
  run: "a training, and the files that it has written",
  best: "the weights with the lowest val loss",
  last: "the weights after the last step",
  weights: "the numbers that a network consists of; training changes them",
  step: "one change of the weights, by a few thousand tokens",
  token: "a piece of text that the network reads and writes at once: a character, or a few of them",
  seed: "a number from which chance is computed: with the same one, the same text is written again",
  temperature: "below 1, likely tokens become likelier, and the text more usual; above 1 it becomes wilder",
  "temperature, top_k, top_p, min_p": "how probabilities are changed before a token is drawn; see Options",
  loss: "how much the next token surprises the network on average; lower is better",
  nats: "the unit of surprise and of loss: 0 for a token that was certain, 0.7 for one of two that are equally likely, 2.3 for one of ten",
  "train loss": "the loss on the text that it is trained on, during the training: of the network alone, and with dropout if there is any, so that it may be above the val loss",
  "val loss": "the loss on text that it is not trained on; with counted n-grams, if the run has them",
  evaluation: "a measurement of the val loss, every few steps; the curve shows each, the list of runs the lowest one",
  overfitting: "the network learns its text by heart: its train loss falls, and the val loss rises",
  "counted n-grams": "a table of which token followed which last tokens, up to seven of them by default, in the text that was learned; its probabilities are mixed with those of the network",
  "5-gram model": "one that only counts which token followed the last four, for comparison; a network should come close to it, or do better. The counted n-grams of a run are another, larger table",
  "n-gram embeddings": "vectors that the network has learned for the last few tokens together",
  "chance to be drawn": "the probability with which a token is taken, when the network writes with these options",
  vector: "a list of numbers in which the network computes what it knows of a token",
  attention: "the part of the network in which a token gets information from the tokens before it",
  block: "one of the stages in which the network computes; each has attention and a small network of its own",
  head: "one of the parts of attention in a block, each of which looks at other tokens",
  "logit lens": "what the network would write if it ended after an earlier block",
  "learning rate": "how much a step changes the weights",
  dropout: "leaving out random parts of the network in each step, so that it learns less by heart",
  max_iters: "the number of steps of a training",
  patience: "the number of evaluations without a lower val loss after which a training ends",
  preset: "a set of values for all options",
  tokenizer: "how a text is cut into tokens: char makes each character one, bpe joins the frequent ones",
};

// A list of these words with their meanings.
export function glossary(...words) {
  const entries = words.flatMap((word) => [element("dt", {}, word), element("dd", {}, MEANINGS[word])]);
  return element("details", { className: "words" }, element("summary", {}, "What the words mean"), element("dl", {}, ...entries));
}
