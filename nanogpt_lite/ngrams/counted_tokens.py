"""Which tokens of a train split are counted: not all of a long one, in which counting would take too long."""

from typing import TYPE_CHECKING

import numpy as np

from nanogpt_lite.tokenizers.base import Ids

if TYPE_CHECKING:
    from nanogpt_lite.data.batching import Tokens  # which imports torch

COUNTED_TOKENS = 5_000_000  # of a train split: more take too long beside a short training
STRETCH_TOKENS = 100_000  # contiguous train tokens


def read_counted(tokens: "Tokens") -> Ids:
    """The train tokens that are counted: all of them, or `COUNTED_TOKENS` in evenly spread stretches."""
    if len(tokens) <= COUNTED_TOKENS:
        return tokens[: len(tokens)]
    return read_stretches(tokens, number=COUNTED_TOKENS // STRETCH_TOKENS, length=STRETCH_TOKENS).ravel()


def read_stretches(tokens: "Tokens", *, number: int, length: int) -> Ids:
    """Contiguous tokens, evenly spread over a split: (number, length). The first starts and the last ends with it."""
    starts = [index * (len(tokens) - length) // max(number - 1, 1) for index in range(number)]
    return np.stack([tokens[start : start + length] for start in starts])
