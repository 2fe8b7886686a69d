"""The loss on a split, over all of it or by nanoGPT's estimate. When to ask is left to `trainer`."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from nanogpt_lite.data import batching
from nanogpt_lite.data.batching import Batch, Tokens
from nanogpt_lite.device import devices, distributed, memory
from nanogpt_lite.model.gpt import GPT
from nanogpt_lite.trainer.state import TrainState

EVAL_TOKENS = 4096  # in one batch of an evaluation: enough to keep a processor busy


def val_loss(state: TrainState, tokens: Tokens, stop: Callable[[], bool] = lambda: False) -> float | None:
    """The loss on a split in nats per token, as the config asks for it; None if `stop()` became true meanwhile.

    With `eval_iters` 0 each token but the first is a target once; else it is nanoGPT's estimate from as many
    random batches, the same ones each time. Neither touches what training draws.
    """
    config = state.config
    if config.eval_iters:
        random = (
            batching.random_batch(
                tokens,
                rows=config.batch_size,
                block_size=config.block_size,
                seed=config.seed,
                step=number,
                stream=batching.VAL_STREAM,
            )
            for number in range(config.eval_iters)
        )
        windows: Iterator[Batch] = (part for batch in random for part in batching.split_batch(batch, state.micro_batch))
    else:
        windows = split_windows(tokens, config.block_size)
    return mean_loss(state.model, windows, state.device, config.dtype, stop)


def split_windows(tokens: Tokens, block_size: int) -> Iterator[Batch]:
    """A whole split, each target once, in batches of a size to evaluate with."""
    return batching.all_windows(tokens, rows=max(1, EVAL_TOKENS // block_size), block_size=block_size)


@torch.inference_mode()
def mean_loss(
    model: GPT,
    windows: Iterable[Batch],
    device: torch.device,
    dtype: str,
    stop: Callable[[], bool] = lambda: False,
) -> float | None:
    """The loss of a model in nats per token over all targets in `windows`; None if `stop()` became true meanwhile.

    Each rank takes every so many-th batch of the windows.
    """
    model.eval()
    losses, counts, stopped = [], [], False
    for x, y in itertools.islice(windows, distributed.rank(), None, distributed.world_size()):
        if stopped := stop():
            break
        for loss, targets in _batch_losses(model, x, y, device, dtype):
            losses.append(loss)
            counts.append(targets)
    own = math.fsum(loss.item() * count for loss, count in zip(losses, counts, strict=True))
    summed, count, stops = distributed.all_reduce_sum(own, sum(counts), stopped)
    return None if stops else summed / count


def _batch_losses(model: GPT, x: Tensor, y: Tensor, device: torch.device, dtype: str) -> list[tuple[Tensor, int]]:
    """The mean losses of a batch of (rows, T), and of how many targets each is: of parts if memory demands it."""
    try:
        with devices.autocast(device, dtype):
            return [(model(devices.to_device(x, device), devices.to_device(y, device))[1], y.numel())]
    except (MemoryError, RuntimeError) as error:
        if len(x) == 1 or not memory.is_out_of_memory(error):
            raise
    memory.free_memory(device)
    parts = zip(x.chunk(2), y.chunk(2), strict=True)
    return [found for x, y in parts for found in _batch_losses(model, x, y, device, dtype)]
