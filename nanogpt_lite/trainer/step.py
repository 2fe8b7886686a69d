"""One optimizer step: the rows of a batch through the network in micro-batches, and what they add up to.

Of several `ranks` each takes a share of the rows. When to take a step is the business of `trainer`.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor

from nanogpt_lite.data import batching
from nanogpt_lite.data.batching import Batch
from nanogpt_lite.device import devices, distributed, memory, seeding
from nanogpt_lite.errors import ExternalError
from nanogpt_lite.optim import build
from nanogpt_lite.trainer.state import TrainState


def train_step(state: TrainState, forward: Callable[..., Any], batch: Batch) -> None:
    """One optimizer step on a batch of (rows, T) inputs and targets, of which each rank takes an equal share.

    A share goes through the network in micro-batches of at most `state.micro_batch` rows, of fewer once memory does
    not suffice for them: with the same result, but for the masks of dropout. PyTorch's error if it does not for one.
    """
    config = state.config
    assert len(batch[0]) == config.rows_per_step, f"a step takes {config.rows_per_step} rows"
    inputs, targets = (half[distributed.rank_slice(config.rows_per_step)] for half in batch)
    build.set_learning_rates(state.optimizer, state.step, config)
    if not state.model.training:  # to ask takes no time, to set it walks through all modules
        state.model.train()
    while (step_loss := _backward_micro_batches(state, forward, inputs, targets)) is None:
        _halve_micro_batch(state)
    optimizer = cast(torch.optim.Optimizer, state.optimizer)  # as far as the scaler knows
    state.scaler.unscale_(optimizer)
    gradients = [parameter.grad for parameter in state.model.parameters() if parameter.grad is not None]
    state.grad_norm = torch.nn.utils.get_total_norm(gradients)
    if config.grad_clip:
        torch.nn.utils.clip_grads_with_norm_(state.model.parameters(), config.grad_clip, state.grad_norm)
    state.scaler.step(optimizer)
    state.scaler.update()
    state.optimizer.zero_grad()
    step_loss = distributed.all_reduce_mean(step_loss)
    state.since_log.add(step_loss)
    state.since_eval.add(step_loss)
    state.step += 1


def wrap_and_probe(state: TrainState, network: Callable[..., Any]) -> Callable[..., Any]:
    """The network, with gradients that several ranks share. `ExternalError` if a single row does not fit."""
    forward = distributed.wrap_ddp(network, state.device)
    if distributed.world_size() > 1:
        # Which micro-batch fits, the ranks find out while none waits for another one. What the optimizer keeps is
        # there after its first step, and takes its place now.
        kept = [] if state.step else build.reserve_optimizer_state(state.optimizer)
        while any(distributed.all_reduce_max(not _probe_memory(state, forward, alone=True))):
            if _micro_batch_rows(state) == 1:
                raise ExternalError("out of memory with a single row on one of the ranks; give a smaller --block_size")
            _halve_micro_batch(state)
        del kept
        # PyTorch orders the gradients in its buffers anew after the first step, and so the sums over the ranks. With
        # a step that does not count, a run that goes on adds up as it would have without the interruption.
        _probe_memory(state, forward, alone=False)
    return forward


def _backward_micro_batches(
    state: TrainState, forward: Callable[..., Any], inputs: Tensor, targets: Tensor
) -> Tensor | None:
    """The loss of this rank's rows, whose gradients are there then; None if memory did not suffice."""
    config, device = state.config, state.device
    parts = list(batching.split_batch((inputs, targets), state.micro_batch))
    step_loss = torch.zeros((), device=device)
    try:
        for number, (x, y) in enumerate(parts):
            masks = (config.seed, state.step, distributed.rank() * len(parts) + number)
            with (
                seeding.seeded(device, *masks) if config.dropout or config.ngram_dropout else nullcontext(),
                distributed.no_sync(forward) if number + 1 < len(parts) else nullcontext(),
            ):
                with devices.autocast(device, config.dtype):
                    loss = forward(devices.to_device(x, device), devices.to_device(y, device))[1]
                loss = loss * (len(x) / len(inputs))
                state.scaler.scale(loss).backward()
            step_loss += loss.detach()
    except (MemoryError, RuntimeError) as error:
        # other ranks may be waiting for this one in the middle of the same step: they cannot begin it again
        if distributed.world_size() > 1 or _micro_batch_rows(state) == 1 or not memory.is_out_of_memory(error):
            raise
        return None
    return step_loss


def _probe_memory(state: TrainState, forward: Callable[..., Any], *, alone: bool) -> bool:
    """Whether memory suffices for micro-batches, in passes that do not count; `alone`: without the other ranks.

    `alone` it takes two, as many steps do: in the second the gradients of the first are there.
    """
    x = torch.zeros(_micro_batch_rows(state), state.config.block_size, dtype=torch.int64, device=state.device)
    try:
        for _ in range(2 if alone else 1):
            with distributed.no_sync(forward) if alone else nullcontext():
                with seeding.seeded(state.device), devices.autocast(state.device, state.config.dtype):
                    loss = forward(x, x)[1]
                loss.backward()
    except (MemoryError, RuntimeError) as error:
        if not alone or not memory.is_out_of_memory(error):
            raise
        return False
    state.optimizer.zero_grad()
    return True


def _halve_micro_batch(state: TrainState) -> None:
    """Let fewer rows through the network at a time, after a pass that memory did not suffice for."""
    state.optimizer.zero_grad()  # a part of them may be there
    state.micro_batch = math.ceil(_micro_batch_rows(state) / 2)
    memory.free_memory(state.device)


def _micro_batch_rows(state: TrainState) -> int:
    """How many rows of a rank's share go through the network at a time, at most."""
    return min(state.micro_batch, state.config.rows_per_step // distributed.world_size())
