"""How much of generated text is copied from the train split: the longest span of tokens that both have."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nanogpt_lite.tokenizers.base import Ids

Hashes = npt.NDArray[np.uint64]

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd; products wrap around at 2**64


def longest_copies(samples: Sequence[Ids], train: Ids) -> list[Ids]:
    """For each sample, its longest span of contiguous tokens that is in the train tokens as well; the first of several.

    >>> [span.tolist() for span in longest_copies([np.array([7, 1, 2, 3, 9]), np.array([8])], np.array([1, 2, 3, 4]))]
    [[1, 2, 3], []]
    """
    return [_longest_copy(sample, train) for sample in samples]


def _longest_copy(sample: Ids, train: Ids) -> Ids:
    """By bisection of the length: where a span is in both, so are all parts of it."""
    copied, is_shared, not_shared = sample[:0], 0, min(len(sample), len(train)) + 1
    while not_shared - is_shared > 1:
        length = (is_shared + not_shared) // 2
        span = _find_shared(sample, train, length)
        if span is None:
            not_shared = length
        else:
            copied, is_shared = span, length
    return copied


def _find_shared(sample: Ids, train: Ids, length: int) -> Ids | None:
    """The first span of `length` tokens of the sample that is in the train tokens as well; None if there is none."""
    of_sample, of_train = _hash_windows(sample, length), _hash_windows(train, length)
    candidates = np.flatnonzero(np.isin(of_train, of_sample))  # few: two spans may have one hash, so they are compared
    for start, value in enumerate(of_sample):
        span = sample[start : start + length]
        for at in candidates[of_train[candidates] == value]:
            if np.array_equal(train[at : at + length], span):
                return span
    return None


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
