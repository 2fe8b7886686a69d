"""The loss on a split: over the whole split, or nanoGPT's estimate from random batches. `loop` decides when."""

import itertools
import math
import operator
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from nanogpt_lite.data import batching
from nanogpt_lite.data.batching import Batch, Tokens
from nanogpt_lite.device import devices, memory
from nanogpt_lite.device.distributed import SINGLE_PROCESS, ProcessGroup
from nanogpt_lite.model.gpt import GPT
from nanogpt_lite.trainer.state import TrainState

EVAL_TOKENS = 4096  # in a batch of an evaluation: enough to keep a processor busy
CUDA_EVAL_TOKENS = 65536  # enough for a GPU, which would wait for Python between the kernels of a smaller batch
MAX_EVAL_LOGITS = 2**28  # in a batch on a GPU: the logits of a large vocabulary take more memory than all else


class Losses(NamedTuple):
    """Mean losses in nats per token; without an n-gram expert they are the same."""

    loss: float  # of what is sampled: of the mixture, with an n-gram expert
    network_loss: float  # of the network alone


def val_losses(state: TrainState, tokens: Tokens, *, stop: Callable[[], bool] = lambda: False) -> Losses | None:
    """The losses on a split, as the config asks for it; None if `stop()` became true meanwhile.

    With `eval_iters` 0 each token but the first is a target once; of a long split only about `eval_tokens` are, always
    the same ones. Otherwise it is nanoGPT's estimate: the mean over `eval_iters` random batches, the same ones each
    time. Neither changes the random numbers of training.
    """
    config = state.config
    if config.eval_iters:
        batches = _sample_batches(state, tokens)
    else:
        batches = split_windows(tokens, state.model, max_tokens=config.eval_tokens)
    return mean_losses(state.model, batches, state.device, config.dtype, stop=stop, group=state.group)


def split_windows(tokens: Tokens, model: GPT, *, max_tokens: int = 0) -> Iterator[Batch]:
    """A split in windows of the model's `block_size`, each target once, in batches for the model's device.

    Of a split that `is_long` for `max_tokens`, evenly spread windows with about that many tokens together.
    """
    block_size = model.config.block_size
    rows = max(1, batch_tokens(model.lm_head.weight.device, model.vocab_size) // block_size)
    if is_long(len(tokens), max_tokens) and len(tokens) > block_size:
        n_windows = max(1, max_tokens // block_size)
        return batching.spread_windows(tokens, rows=rows, block_size=block_size, n_windows=n_windows)
    return batching.all_windows(tokens, rows=rows, block_size=block_size)


def batch_tokens(device: torch.device, vocab_size: int) -> int:
    """About how many tokens a batch of an evaluation has."""
    if device.type != "cuda":
        return EVAL_TOKENS
    return max(EVAL_TOKENS, min(CUDA_EVAL_TOKENS, MAX_EVAL_LOGITS // vocab_size))


def is_long(n_tokens: int, max_tokens: int) -> bool:
    """Whether only `max_tokens` (0: all) of `n_tokens` are evaluated: with less than twice as many it saves little."""
    return 0 < 2 * max_tokens < n_tokens


@torch.inference_mode()
def mean_losses(
    model: GPT,
    batches: Iterable[Batch],
    device: torch.device,
    dtype: str,
    *,
    stop: Callable[[], bool] = lambda: False,
    group: ProcessGroup = SINGLE_PROCESS,
) -> Losses | None:
    """The losses over all targets in `batches`; None if `stop()` became true meanwhile on any rank.

    Rank r evaluates the batches r, r + world_size, r + 2 * world_size and so on. Leaves the model in eval mode.
    """
    model.eval()
    sums, stopped = list[tuple[Tensor, int]](), False
    max_rows = sys.maxsize  # that fit into memory
    for x, y in itertools.islice(batches, group.rank, None, group.world_size):
        if stopped := stop():
            break
        parts, max_rows = _part_losses(model, x, y, device, dtype, max_rows)
        sums += parts
    counts = [count for _, count in sums]
    # together, because each copy waits for a GPU
    by_part = torch.stack([losses for losses, _ in sums]).cpu() if sums else torch.zeros(0, 2)
    own_sums = [math.fsum(map(operator.mul, values, counts)) for values in by_part.T.tolist()]
    loss, network_loss, count, stops = group.all_reduce_sum(*own_sums, sum(counts), stopped)
    return None if stops else Losses(loss / count, network_loss / count)


def _sample_batches(state: TrainState, tokens: Tokens) -> Iterator[Batch]:
    """The `eval_iters` random batches of an estimate, in parts of at most `state.micro_batch` rows."""
    config = state.config
    for number in range(config.eval_iters):
        batch = batching.random_batch(
            tokens,
            rows=config.batch_size,
            block_size=config.block_size,
            seed=config.seed,
            step=number,
            stream=batching.VAL_STREAM,
        )
        yield from batching.split_batch(batch, state.micro_batch)


def _part_losses(
    model: GPT, x: Tensor, y: Tensor, device: torch.device, dtype: str, max_rows: int
) -> tuple[list[tuple[Tensor, int]], int]:
    """The mean losses (2,) and the number of targets of each part of a batch (B, T), and the most rows of a later part.

    A part has at most `max_rows` rows; from one on for which memory is not enough, half as many as that.
    """
    losses: list[tuple[Tensor, int]] = []
    start = 0
    while start < len(x):
        part_x, part_y = x[start : start + max_rows], y[start : start + max_rows]
        part_losses = _losses(model, part_x, part_y, device, dtype)
        if part_losses is None:
            max_rows = math.ceil(len(part_x) / 2)
            memory.free_memory(device)
        else:
            losses.append((part_losses, part_y.numel()))
            start += len(part_x)
    return losses, max_rows


def _losses(model: GPT, x: Tensor, y: Tensor, device: torch.device, dtype: str) -> Tensor | None:
    """The mean losses (2,) of rows (B, T); None if memory is not enough for several. PyTorch's error of one row."""
    try:
        with devices.autocast(device, dtype):
            return model.losses(devices.to_device(x, device), devices.to_device(y, device))
    except (MemoryError, RuntimeError) as error:
        if len(x) == 1 or not memory.is_out_of_memory(error):
            raise
    return None
