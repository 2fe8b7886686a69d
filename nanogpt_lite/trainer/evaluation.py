"""The loss on a split: over the whole split, or nanoGPT's estimate from random batches. `loop` decides when."""

import itertools
import math
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
MAX_LOGITS = 2**28  # in a batch on a GPU: the logits of a large vocabulary take more memory than all else


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
    return max(EVAL_TOKENS, min(CUDA_EVAL_TOKENS, MAX_LOGITS // vocab_size))


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
    for x, y in itertools.islice(batches, group.rank, None, group.world_size):
        if stopped := stop():
            break
        for loss, targets in _batch_losses(model, x, y, device, dtype):
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


def _batch_losses(model: GPT, x: Tensor, y: Tensor, device: torch.device, dtype: str) -> list[tuple[Tensor, int]]:
    """The mean loss and the number of targets of a batch (B, T); of parts of it if memory is not enough for all."""
    try:
        with devices.autocast(device, dtype):
            return [(model(devices.to_device(x, device), devices.to_device(y, device))[1], y.numel())]
    except (MemoryError, RuntimeError) as error:
        if len(x) == 1 or not memory.is_out_of_memory(error):
            raise
    memory.free_memory(device)
    halves = zip(x.chunk(2), y.chunk(2), strict=True)
    return [part for x, y in halves for part in _batch_losses(model, x, y, device, dtype)]
