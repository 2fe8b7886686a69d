"""Counts the n-grams of a train split for the n-gram expert of a new run. See `model.ngram_expert`."""

import numpy as np
import torch

from nanogpt_lite.data.batching import Tokens
from nanogpt_lite.diagnosis.ngram_baseline import read_counted
from nanogpt_lite.model.gpt import GPT
from nanogpt_lite.model.ngram_counts import count_ngrams


def count_train_split(model: GPT, tokens: Tokens) -> None:
    """Give the network's n-gram expert, if it has one, the counts of a train split, shape (tokens,).

    Of a long split, as much is counted as for the n-gram models that a loss is compared with. All ranks, and any number
    of threads, get the same counts.
    """
    if model.expert is not None:
        counted = torch.from_numpy(read_counted(tokens).astype(np.int64))
        model.expert.set_counts(count_ngrams(counted, model.vocab_size, model.config.ngram_expert))
