"""The n-grams of a text with their counts, as a trie in flat tensors. `model.ngram_expert` looks them up."""

from typing import NamedTuple

import torch
from torch import Tensor

from nanogpt_lite.ngrams.ranking import rank_keys

MIN_COUNT = 2  # of a context: what follows one that occurred once says little, and would be most of the trie
KEPT_COUNTS = 5  # counts of counts: those of 0 to 4


class NgramCounts(NamedTuple):
    """A trie of n-grams with E nodes below its root. An n-gram is the path from the root to a node.

    Nodes are numbered by length, then by the number of their parent, then by token; the root is 0. So the children of
    a node are neighbours, and the numbers of children say where they are.
    """

    tokens: Tensor  # (E,) int32: the last token of each n-gram
    counts: Tensor  # (E,) int32: distinct tokens before it; of the longest n-grams, occurrences
    num_children: Tensor  # (E + 1,) int32: n-grams that are one token longer, of the root and of each node
    counts_of_counts: Tensor  # (order, 5) int64: how many n-grams of each length have a count of 0 (none), 1, 2, 3, 4


class _Level(NamedTuple):
    """The n-grams of one length."""

    length: int
    keys: Tensor  # (nodes,) the number of the parent on its level * V + token, ascending
    occurrences: Tensor  # (nodes,)
    ending_at: Tensor  # (N,) the number on this level of the n-gram that ends at each token of the text; -1: none


def count_ngrams(tokens: Tensor, vocab_size: int, order: int, *, min_count: int = MIN_COUNT) -> NgramCounts:
    """The n-grams of 1 to `order` tokens in a text of `tokens` (N,), int64, whose context occurred `min_count` times.

    The context is all but the last token; `min_count` is 1 or 2. `counts_of_counts` are those of all n-grams. The start
    of the text counts as one token before the first n-gram of each length. Only integers are added, so the counts are
    the same for any number of threads. Memory: about 60 bytes for each token of the text, beside the counts.
    """
    level: _Level | None = _extend(None, tokens, vocab_size, min_count)
    parts, num_parents = [], 1
    while level is not None:
        longer = _extend(level, tokens, vocab_size, min_count) if level.length < order else None
        counts = level.occurrences if longer is None else _count_predecessors(level, longer)
        histogram = torch.bincount(counts.clamp(max=KEPT_COUNTS), minlength=KEPT_COUNTS + 1)[:KEPT_COUNTS]
        histogram[1] += (level.ending_at[level.length - 1 :] < 0).sum()  # an n-gram that is no node occurred once
        children = torch.bincount(level.keys // vocab_size, minlength=num_parents)
        parts.append(((level.keys % vocab_size).int(), counts.int(), children.int(), histogram))
        num_parents, level = len(counts), longer
    all_tokens, all_counts, all_children, histograms = zip(*parts, strict=True)
    leaves = torch.zeros(num_parents, dtype=torch.int32)
    return NgramCounts(
        torch.cat(all_tokens), torch.cat(all_counts), torch.cat([*all_children, leaves]), torch.stack(histograms)
    )


def node_lengths(counts: NgramCounts) -> Tensor:
    """The length of the n-gram of each node (E,). `ValueError` if the numbers of children describe no trie."""
    children, level, lengths = counts.num_children.long(), slice(0, 1), []
    while level.start < level.stop:
        num_nodes = int(children[level].sum())
        lengths.append(num_nodes)
        level = slice(level.stop, level.stop + num_nodes)
        if level.stop > len(children):
            break
    if sum(lengths) + 1 != len(children) or bool((children < 0).any()):
        raise ValueError("the numbers of children describe no trie")
    return torch.repeat_interleave(torch.arange(1, len(lengths) + 1), torch.tensor(lengths))


def _extend(level: _Level | None, tokens: Tensor, vocab_size: int, min_count: int) -> _Level:
    """The n-grams that are one token longer, after those that occurred `min_count` times."""
    if level is None:
        parents, length = torch.zeros_like(tokens), 1
    else:
        is_parent = torch.cat([level.occurrences >= min_count, torch.tensor([False])])  # the last one is for -1
        parents = torch.where(is_parent[level.ending_at], level.ending_at, -1).roll(1)
        parents[:1] = -1
        length = level.length + 1
    has_parent = parents >= 0
    ranked = rank_keys((parents[has_parent] * vocab_size + tokens[has_parent]).numpy())
    keys, nodes, occurrences = (torch.from_numpy(array) for array in ranked)
    ending_at = torch.full_like(tokens, -1)
    ending_at[has_parent] = nodes
    return _Level(length, keys, occurrences, ending_at)


def _count_predecessors(level: _Level, longer: _Level) -> Tensor:
    """The number of distinct tokens before each n-gram: one for each longer n-gram that ends in it."""
    is_node = longer.ending_at >= 0
    one_end_of_each = torch.empty_like(longer.keys)
    one_end_of_each[longer.ending_at[is_node]] = is_node.nonzero()[:, 0]
    start = level.length  # of the longer n-grams, the first ends here
    ends_of_others = level.ending_at[start:][~is_node[start:]]  # they are no nodes, so each occurred once
    first = level.ending_at[start - 1 : start]  # the n-gram at the start of the text
    shorter = torch.cat([level.ending_at[one_end_of_each], ends_of_others, first])
    return torch.bincount(shorter[shorter >= 0], minlength=len(level.keys))
