"""The distinct integers of an array in ascending order, with what `numpy.unique` gives about them, but faster."""

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

SORTED_BITS = 63  # of an int64 that is not negative


def rank_keys(keys: Ints) -> tuple[Ints, Ints, Ints]:
    """The distinct keys in ascending order, the rank of each key among them (N,), and how often each occurs.

    `keys`: (N,), not negative. Memory: about 60 bytes for each key.

    >>> [array.tolist() for array in rank_keys(np.array([30, 10, 30]))]
    [[10, 30], [1, 0, 1], [1, 2]]
    """
    index_bits = len(keys).bit_length()
    if int(keys.max(initial=0)).bit_length() > SORTED_BITS - index_bits:
        distinct, ranks, counts = np.unique(keys, return_inverse=True, return_counts=True)
        return distinct, ranks, counts
    # a sort of integers that contain their index takes a third of the time of an argsort, which `numpy.unique` needs
    sorted_keys = keys << index_bits
    sorted_keys |= np.arange(len(keys))
    sorted_keys.sort()
    indices = sorted_keys & ((1 << index_bits) - 1)
    sorted_keys >>= index_bits
    is_new = np.diff(sorted_keys, prepend=-1) > 0
    starts = np.flatnonzero(is_new)
    ranks = np.empty_like(keys)
    ranks[indices] = np.cumsum(is_new) - 1
    return sorted_keys[starts], ranks, np.diff(starts, append=len(keys))
