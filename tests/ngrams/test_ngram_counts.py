"""The counts of n-grams in a trie, against those of a dictionary."""

from collections import Counter

import numpy as np
import pytest
import torch
from ngram_texts import TEXTS

from nanogpt_lite.ngrams.ngram_counts import count_ngrams, node_lengths


def paths(counts):
    """The n-grams of a trie with their counts, by walking it from the root."""
    first_child = 1 + np.concatenate([[0], np.cumsum(counts.num_children[:-1].numpy())])

    def walk(node, path):
        children = range(first_child[node], first_child[node] + int(counts.num_children[node]))
        for child in children:
            longer = (*path, int(counts.tokens[child - 1]))
            yield longer, int(counts.counts[child - 1])
            yield from walk(child, longer)

    return dict(walk(0, ()))


@pytest.mark.parametrize("min_count", [1, 2])
@pytest.mark.parametrize("order", [1, 2, 4])
@pytest.mark.parametrize("name", TEXTS)
def test_counts_are_those_of_a_dictionary(name, order, min_count):
    vocab_size, text = TEXTS[name]
    ngrams = [tuple(text[i : i + n]) for n in range(1, order + 1) for i in range(len(text) - n + 1)]
    occurrences = Counter(ngrams)
    before = {
        (tuple(text[i : i + n]), text[i - 1] if i else None) for n in range(1, order) for i in range(len(text) - n + 1)
    }
    distinct = Counter(ngram for ngram, _ in before)
    expected = {n: c if len(n) == order else distinct[n] for n, c in occurrences.items()}
    counts = count_ngrams(torch.from_numpy(text), vocab_size, order, min_count=min_count)
    is_kept = {n: len(n) == 1 or occurrences[n[:-1]] >= min_count for n in expected}
    assert paths(counts) == {n: c for n, c in expected.items() if is_kept[n]}
    assert node_lengths(counts).tolist() == sorted(len(n) for n in paths(counts))
    for length, histogram in enumerate(counts.counts_of_counts.tolist(), start=1):
        of_length = Counter(c for n, c in expected.items() if len(n) == length)
        assert histogram == [of_length[c] for c in range(5)]
