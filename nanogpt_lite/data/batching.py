"""Batches of token ids: random or spread ones for training, and all windows of a split for evaluation.

The batch of step i is a pure function of (seed, i): random numbers come from a counter-based generator (Philox;
Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"). So there is no state to save in a checkpoint.

Shapes: B rows, T = `block_size` tokens.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nanogpt_lite.data.sources import TRAIN_FRACTION
from nanogpt_lite.errors import UserError
from nanogpt_lite.tokenizers.base import Ids

Batch = tuple[Tensor, Tensor]
"""Inputs x and targets y, both int64 (B, T). The target of a token is the next token."""

TRAIN_STREAM, VAL_STREAM, SPREAD_STREAM = 0, 1, 2  # part of the counter: independent random numbers for each
GOLDEN_RATIO = np.uint64(0x9E3779B97F4A7C15)  # (sqrt(5) - 1) / 2, in units of 2**-64


class Tokens(Protocol):
    """The token ids of a split, shape (tokens,): an array, or a file that is sliced like an array."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> Ids: ...


class WithoutParts:
    """A split without the parts of `length` tokens that begin at `starts`, in ascending order and apart.

    Nothing of it is read before a part is asked for.
    """

    def __init__(self, tokens: Tokens, starts: Sequence[int], length: int) -> None:
        self._tokens, self._left_out = tokens, length
        self._kept = list(zip([0, *(start + length for start in starts)], [*starts, len(tokens)], strict=True))

    def __len__(self) -> int:
        return sum(stop - start for start, stop in self._kept)

    def __getitem__(self, part: slice, /) -> Ids:
        first, last, _ = part.indices(len(self))
        pieces = []
        for number, (start, stop) in enumerate(self._kept):
            left_out = number * self._left_out  # before this piece
            low, high = max(first + left_out, start), min(last + left_out, stop)
            if low < high:
                pieces.append(self._tokens[low:high])
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces or [self._tokens[0:0]])


def random_batch(
    tokens: Tokens, *, rows: int, block_size: int, seed: int, step: int, stream: int = TRAIN_STREAM
) -> Batch:
    """The batch of one step: (`rows`, `block_size`) each, from windows at random positions in `tokens`.

    It is a pure function of its arguments: the same (seed, stream, step) gives the same positions.
    """
    # Philox's counter gives the numbers of any step at once, without those of the steps before
    bits = np.random.Philox(key=seed, counter=[0, 0, stream, step]).random_raw(rows)
    uniforms = (bits >> np.uint64(11)) * 2.0**-53  # in [0, 1), (B,)
    starts = (uniforms * (len(tokens) - block_size)).astype(np.int64)
    return _gather_windows(tokens, starts, block_size)


def spread_batch(tokens: Tokens, *, rows: int, block_size: int, seed: int, step: int) -> Batch:
    """The batch of one step as `random_batch`, but so that all steps together see each token about equally often.

    The position of each next window is the golden ratio of the split further on, from a random position on, and begins
    again at the end. Of all sequences of that kind it fills a range most evenly, whenever it ends (Knuth, TAOCP 3,
    section 6.4, theorem S). Random positions miss a third of the tokens in the first epoch.
    """
    first = int(np.random.Philox(key=seed, counter=[0, 0, SPREAD_STREAM, 0]).random_raw())
    numbers = np.arange(step * rows, (step + 1) * rows, dtype=np.uint64)
    fractions = np.uint64(first) + numbers * GOLDEN_RATIO  # in units of 2**-64, so that overflow begins again, (B,)
    starts = ((fractions >> np.uint64(11)) * 2.0**-53 * (len(tokens) - block_size)).astype(np.int64)
    return _gather_windows(tokens, starts, block_size)


BATCHES = {"random": random_batch, "spread": spread_batch}  # by the option `batch_sampling`


def train_batches(
    tokens: Tokens, *, rows: int, block_size: int, seed: int, step: int, sampling: str = "random"
) -> Iterator[Batch]:
    """The training batches from `step` on, without end. `sampling`: a name in `BATCHES`."""
    while True:
        yield BATCHES[sampling](tokens, rows=rows, block_size=block_size, seed=seed, step=step)
        step += 1


def split_batch(batch: Batch, rows: int) -> Iterator[Batch]:
    """A batch in micro-batches of at most `rows` rows."""
    inputs, targets = (torch.split(tensor, rows) for tensor in batch)
    return zip(inputs, targets, strict=True)


def all_windows(tokens: Tokens, *, rows: int, block_size: int) -> Iterator[Batch]:
    """The whole split, in order: every token but the first is a target exactly once.

    The windows of `block_size` tokens do not overlap. A batch has up to `rows` of them, and the tokens that remain at
    the end are one shorter window in a batch of its own.

    >>> [(x.tolist(), y.tolist()) for x, y in all_windows(np.arange(6), rows=2, block_size=2)]
    [([[0, 1], [2, 3]], [[1, 2], [3, 4]]), ([[4]], [[5]])]
    """
    n_windows, rest = divmod(len(tokens) - 1, block_size)
    for first in range(0, n_windows, rows):
        yield _gather_windows(tokens, np.arange(first, min(first + rows, n_windows)) * block_size, block_size)
    if rest:
        yield _gather_windows(tokens, np.array([n_windows * block_size]), rest)


def spread_windows(tokens: Tokens, *, rows: int, block_size: int, n_windows: int) -> Iterator[Batch]:
    """`n_windows` of the windows of `block_size` tokens that `all_windows` has, evenly spread, always the same ones.

    A batch has up to `rows` of them. `n_windows` is at most their number.

    >>> [(x.tolist(), y.tolist()) for x, y in spread_windows(np.arange(9), rows=2, block_size=2, n_windows=2)]
    [([[0, 1], [4, 5]], [[1, 2], [5, 6]])]
    """
    available = (len(tokens) - 1) // block_size
    assert n_windows <= available, f"{n_windows} windows of {available}"
    starts = np.arange(n_windows) * available // n_windows * block_size
    for first in range(0, n_windows, rows):
        yield _gather_windows(tokens, starts[first : first + rows], block_size)


def require_length(train: Tokens, val: Tokens, *, block_size: int, sampled_val: bool) -> None:
    """`UserError` if a split is too short for one window. `val` may be shorter unless `sampled_val`, see `all_windows`.

    `sampled_val`: the evaluation uses random windows, not the whole split.
    """
    needed = block_size + 1
    short = "train" if len(train) < needed else "val" if sampled_val and len(val) < needed else None
    if short:
        fraction, length = (TRAIN_FRACTION, len(train)) if short == "train" else (1 - TRAIN_FRACTION, len(val))
        raise UserError(
            f"the text is too short for block_size={block_size}: its {short} split has {length} tokens, one block "
            f"needs {needed}; give a text of at least about {int(needed / fraction) + 2} tokens, "
            f"or a `block_size` of at most {max(length - 1, 1)}"
        )


def _gather_windows(tokens: Tokens, starts: npt.NDArray[np.int64], length: int) -> Batch:
    rows = [tokens[start : start + length + 1] for start in starts.tolist()]
    windows = torch.from_numpy(np.stack(rows).astype(np.int64))  # (B, T + 1)
    return windows[:, :-1], windows[:, 1:]
