"""How much of generated text is copied from the train split: the longest span of tokens that both have."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from nanogpt_lite.tokenizers.base import Ids

if TYPE_CHECKING:
    from nanogpt_lite.data.batching import Tokens  # which imports torch

Hashes = npt.NDArray[np.uint64]

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd; products wrap around at 2**64
SEARCHED_TOKENS = 5_000_000  # of the train split at a time; each takes about 30 bytes


def longest_copies(samples: Sequence[Ids], train: "Tokens") -> list[Ids]:
    """For each sample, its longest span of contiguous tokens that is in the train tokens as well; one of several.

    >>> [span.tolist() for span in longest_copies([np.array([7, 1, 2, 3, 9]), np.array([8])], np.array([1, 2, 3, 4]))]
    [[1, 2, 3], []]
    """
    copied = [sample[:0] for sample in samples]
    overlap = max(map(len, samples), default=1) - 1  # so that no span is cut at the end of a part
    for start in range(0, len(train), SEARCHED_TOKENS):
        copied = _longer_copies(samples, train[start : start + SEARCHED_TOKENS + overlap], copied)
    return copied


def _longer_copies(samples: Sequence[Ids], train: Ids, copied: list[Ids]) -> list[Ids]:
    """For each sample, its longest span that is in these train tokens, if it is longer than the one in `copied`."""
    copied = copied.copy()
    # by bisection of the length: where a span is in both, so are all parts of it
    shared = [len(span) for span in copied]
    has_longer = [length == 0 for length in shared]  # else one token more is tried first: most parts have none
    not_shared = [min(len(sample), len(train)) + 1 for sample in samples]
    while undecided := [n for n in range(len(samples)) if not_shared[n] - shared[n] > 1]:
        by_length = defaultdict(list)
        for n in undecided:
            by_length[(shared[n] + not_shared[n]) // 2 if has_longer[n] else shared[n] + 1].append(n)
        for length, numbers in by_length.items():  # the train tokens are hashed once for all samples
            find = _make_search(train, length)
            for n in numbers:
                span = find(samples[n])
                if span is None:
                    not_shared[n] = length
                else:
                    copied[n], shared[n], has_longer[n] = span, length, True
            del find  # its hashes, before those of the next length are made
    return copied


def _make_search(train: Ids, length: int) -> Callable[[Ids], Ids | None]:
    """A function that gives the first span of `length` tokens of a sample that is in the train tokens as well."""
    hashes = _hash_windows(train, length)
    order = hashes.argsort()
    hashes = hashes[order]

    def find(sample: Ids) -> Ids | None:
        of_sample = _hash_windows(sample, length)
        begins, ends = np.searchsorted(hashes, of_sample, "left"), np.searchsorted(hashes, of_sample, "right")
        for start in np.flatnonzero(begins < ends):
            span = sample[start : start + length]
            for at in order[begins[start] : ends[start]]:  # different spans may have the same hash
                if np.array_equal(train[at : at + length], span):
                    return span
        return None

    return find


def _hash_windows(ids: Ids, length: int) -> Hashes:
    """A hash of each window of `length` tokens: of two halves, and of a last token if the length is odd."""
    if length == 1:
        return ids.astype(np.uint64) + np.uint64(1)
    half = _hash_windows(ids, length // 2)
    windows = (half[: len(half) - length // 2] ^ (half[: len(half) - length // 2] >> np.uint64(29))) * MULTIPLIER
    windows = windows + half[length // 2 :]
    if length % 2:
        windows = windows[:-1] * MULTIPLIER + ids[length - 1 :].astype(np.uint64)
    return windows
