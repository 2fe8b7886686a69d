"""Fast paths that this process does without, because they failed or computed something else than the plain path.

A fast path computes what a plain one computes too, in less time. Each is checked against the plain one where it is
first used; what is wrong with it is a warning, once, and never the end of a training. The checks are in `fast_paths`
(attention, pinned memory), `optim.build`, `trainer.network_setup` (compilation) and `generation.cuda_graph`.
"""

import contextlib
import warnings
from collections.abc import Iterator
from enum import StrEnum

from nanogpt_lite.errors import first_line


class FastPath(StrEnum):
    """What can be done without. The value is what a user calls it."""

    RECORDED_DECODING = "recorded decoding"
    COMPILATION = "the compiled network"
    ATTENTION = "fused attention"
    PINNED_MEMORY = "copies from pinned memory"
    FUSED_ADAMW = "fused AdamW"
    FOREACH = "Muon's operators for many tensors"


_reasons: dict[FastPath, str] = {}


def is_usable(fast_path: FastPath) -> bool:
    """Whether nothing is known to be wrong with a fast path."""
    return fast_path not in _reasons


def give_up(fast_path: FastPath, reason: Exception | str) -> None:
    """Do without a fast path from now on in this process, with a warning if it is the first time."""
    if fast_path in _reasons:
        return
    _reasons[fast_path] = first_line(reason)
    warnings.warn(f"{fast_path} cannot be used ({_reasons[fast_path]}); going on without it, slower", stacklevel=2)


@contextlib.contextmanager
def without(fast_path: FastPath) -> Iterator[None]:
    """Do without a fast path in the block, to compare."""
    assert fast_path not in _reasons, f"{fast_path} is not used"
    _reasons[fast_path] = "compared with the plain path"
    try:
        yield
    finally:
        del _reasons[fast_path]


def describe() -> list[str]:
    """What this process does without, and why: one text for each."""
    return [f"{fast_path}: {reason}" for fast_path, reason in _reasons.items()]
