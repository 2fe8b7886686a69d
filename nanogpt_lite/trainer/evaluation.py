"""The loss on a split: over the whole split, or nanoGPT's estimate from random batches. `loop` decides when."""

import itertools
import math
import sys
from collections.abc import Callable, Iterable, Iterator

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


def val_loss(state: TrainState, tokens: Tokens, *, stop: Callable[[], bool] = lambda: False) -> float | None:
    """The loss on a split in nats per token, as the config asks for it; None if `stop()` became true meanwhile.

    With `eval_iters` 0 each token but the first is a target once; of a long split only about `eval_tokens` are, always
    the same ones. Otherwise it is nanoGPT's estimate: the mean over `eval_iters` random batches, the same ones each
    time. Neither changes the random numbers of training.
    """
    config = state.config
    if config.eval_iters:
        batches = _sample_batches(state, tokens)
    else:
        batches = split_windows(tokens, state.model, max_tokens=config.eval_tokens)
    return mean_loss(state.model, batches, state.device, config.dtype, stop=stop, group=state.group)


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
def mean_loss(
    model: GPT,
    batches: Iterable[Batch],
    device: torch.device,
    dtype: str,
    *,
    stop: Callable[[], bool] = lambda: False,
    group: ProcessGroup = SINGLE_PROCESS,
) -> float | None:
    """The loss in nats per token over all targets in `batches`; None if `stop()` became true meanwhile on any rank.

    Rank r evaluates the batches r, r + world_size, r + 2 * world_size and so on. Leaves the model in eval mode.
    """
    model.eval()
    losses, counts, stopped = [], [], False
    max_rows = sys.maxsize  # that fit into memory
    for x, y in itertools.islice(batches, group.rank, None, group.world_size):
        if stopped := stop():
            break
        parts, max_rows = _part_losses(model, x, y, device, dtype, max_rows)
        for loss, targets in parts:
            losses.append(loss)
            counts.append(targets)
    own_sum = math.fsum(loss.item() * count for loss, count in zip(losses, counts, strict=True))
    total, count, stops = group.all_reduce_sum(own_sum, sum(counts), stopped)
    return None if stops else total / count


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
    """The mean loss and the number of targets of each part of a batch (B, T), and the most rows of a later part.

    A part has at most `max_rows` rows; from one on for which memory is not enough, half as many as that.
    """
    losses: list[tuple[Tensor, int]] = []
    start = 0
    while start < len(x):
        part_x, part_y = x[start : start + max_rows], y[start : start + max_rows]
        loss = _loss(model, part_x, part_y, device, dtype)
        if loss is None:
            max_rows = math.ceil(len(part_x) / 2)
            memory.free_memory(device)
        else:
            losses.append((loss, part_y.numel()))
            start += len(part_x)
    return losses, max_rows


def _loss(model: GPT, x: Tensor, y: Tensor, device: torch.device, dtype: str) -> Tensor | None:
    """The mean loss of rows (B, T); None if memory is not enough for several. PyTorch's error of a single row."""
    try:
        with devices.autocast(device, dtype):
            loss: Tensor = model(devices.to_device(x, device), devices.to_device(y, device))[1]
            return loss
    except (MemoryError, RuntimeError) as error:
        if len(x) == 1 or not memory.is_out_of_memory(error):
            raise
    return None
