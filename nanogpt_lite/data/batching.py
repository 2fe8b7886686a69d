"""Tokens to (x, y): the batch of step i is a pure function of (seed, i), so there is no state to save."""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from nanogpt_lite.errors import UserError
from nanogpt_lite.tokenizers.base import Ids

Batch = tuple[Tensor, Tensor]
"""Inputs and targets, int64, (rows, T) each: the target of a token is the token after it."""

TRAIN_STREAM, VAL_STREAM = 0, 1  # which stream of random numbers


class Tokens(Protocol):
    """The ids of a split, shape (tokens,): an array, or a file that is read like one."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> Ids: ...


def random_batch(
    tokens: Tokens, *, rows: int, block_size: int, seed: int, step: int, stream: int = TRAIN_STREAM
) -> Batch:
    """The batch of a step: `rows` windows of `block_size` tokens, at places drawn from (seed, stream, step)."""
    # Philox is a counter: any step's numbers are at hand without drawing the ones before (Salmon et al. 2011)
    bits = np.random.Philox(key=seed, counter=[0, 0, stream, step]).random_raw(rows)
    places = ((bits >> np.uint64(11)) * 2.0**-53 * (len(tokens) - block_size)).astype(np.int64)
    return _gather_windows(tokens, places, block_size)


def random_batches(tokens: Tokens, *, rows: int, block_size: int, seed: int, step: int) -> Iterator[Batch]:
    """The training batches from `step` on, without end."""
    while True:
        yield random_batch(tokens, rows=rows, block_size=block_size, seed=seed, step=step)
        step += 1


def split_batch(batch: Batch, rows: int) -> Iterator[Batch]:
    """A batch in micro-batches of at most `rows` rows."""
    inputs, targets = (torch.split(half, rows) for half in batch)
    return zip(inputs, targets, strict=True)


def all_windows(tokens: Tokens, *, rows: int, block_size: int) -> Iterator[Batch]:
    """A split from end to end: every token but the first is a target exactly once.

    Windows of `block_size` tokens follow each other without overlap, up to `rows` in a batch; what is left
    over at the end comes alone, as one shorter window.
    """
    whole, rest = divmod(len(tokens) - 1, block_size)
    for first in range(0, whole, rows):
        yield _gather_windows(tokens, np.arange(first, min(first + rows, whole)) * block_size, block_size)
    if rest:
        yield _gather_windows(tokens, np.array([whole * block_size]), rest)


def require_length(train: Tokens, val: Tokens, *, block_size: int, sampled_val: bool) -> None:
    """`UserError` if a split is too short for one window (for val: only if windows are drawn from it)."""
    needed = block_size + 1
    short = "train" if len(train) < needed else "val" if sampled_val and len(val) < needed else None
    if short:
        share, length = (0.9, len(train)) if short == "train" else (0.1, len(val))
        raise UserError(
            f"the text is too short for block_size={block_size}: its {short} split has {length} tokens, one block "
            f"needs {needed}, so the text has to have about {int(needed / share) + 2} tokens; "
            f"give a longer text, or a block_size of at most {max(length - 1, 1)}"
        )


def _gather_windows(tokens: Tokens, places: "np.typing.NDArray[np.int64]", length: int) -> Batch:
    rows = [tokens[place : place + length + 1] for place in places.tolist()]
    windows = torch.from_numpy(np.stack(rows).astype(np.int64))
    return windows[:, :-1], windows[:, 1:]
