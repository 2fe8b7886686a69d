"""One optimizer step: the rows of a batch through the network in micro-batches, and what they add up to.

Of several `ranks` each takes a share of the rows. When to take a step is the business of `trainer`.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor

from nanogpt_lite import batches, optim, ranks, runtime
from nanogpt_lite.batches import Batch
from nanogpt_lite.errors import WorldError
from nanogpt_lite.state import TrainState


def train_step(state: TrainState, forward: Callable[..., Any], batch: Batch) -> None:
    """One optimizer step on a batch of (rows, T) inputs and targets, of which each rank takes an equal share.

    A share goes through the network in micro-batches of at most `state.micro_batch` rows, of fewer once memory does
    not suffice for them: with the same result, but for the masks of dropout. PyTorch's error if it does not for one.
    """
    config = state.config
    assert len(batch[0]) == config.rows_per_step, f"a step takes {config.rows_per_step} rows"
    inputs, targets = (half[ranks.own_share(config.rows_per_step)] for half in batch)
    optim.set_learning_rates(state.optimizer, state.step, config)
    if not state.model.training:  # to ask takes no time, to set it walks through all modules
        state.model.train()
    while (step_loss := _gradients(state, forward, inputs, targets)) is None:
        _halve(state)
    optimizer = cast(torch.optim.Optimizer, state.optimizer)  # as far as the scaler knows
    state.scaler.unscale_(optimizer)
    gradients = [parameter.grad for parameter in state.model.parameters() if parameter.grad is not None]
    state.grad_norm = torch.nn.utils.get_total_norm(gradients)
    if config.grad_clip:
        torch.nn.utils.clip_grads_with_norm_(state.model.parameters(), config.grad_clip, state.grad_norm)
    state.scaler.step(optimizer)
    state.scaler.update()
    state.optimizer.zero_grad()
    step_loss = ranks.mean(step_loss)
    state.since_log.add(step_loss)
    state.since_eval.add(step_loss)
    state.step += 1


def shared(state: TrainState, network: Callable[..., Any]) -> Callable[..., Any]:
    """The network, with gradients that several ranks share. `WorldError` if one lacks the memory for a single row."""
    forward = ranks.parallel(network, state.device)
    if ranks.size() > 1:
        # Which micro-batch fits, the ranks find out while none waits for another one. What the optimizer keeps is
        # there after its first step, and takes its place now.
        kept = [] if state.step else optim.slots_to_be(state.optimizer)
        while any(ranks.greatest(not _fits(state, forward, alone=True))):
            if _rows(state) == 1:
                raise WorldError("out of memory with a single row on one of the ranks; give a smaller --block_size")
            _halve(state)
        del kept
        # PyTorch orders the gradients in its buffers anew after the first step, and so the sums over the ranks. With
        # a step that does not count, a run that goes on adds up as it would have without the interruption.
        _fits(state, forward, alone=False)
    return forward


def _gradients(state: TrainState, forward: Callable[..., Any], inputs: Tensor, targets: Tensor) -> Tensor | None:
    """The loss of this rank's rows, whose gradients are there then; None if memory did not suffice."""
    config, device = state.config, state.device
    parts = list(batches.parts((inputs, targets), state.micro_batch))
    step_loss = torch.zeros((), device=device)
    try:
        for number, (x, y) in enumerate(parts):
            masks = (config.seed, state.step, ranks.rank() * len(parts) + number)
            with (
                runtime.seeded(device, *masks) if config.dropout or config.ngram_dropout else nullcontext(),
                ranks.gradients_stay(forward) if number + 1 < len(parts) else nullcontext(),
            ):
                with runtime.autocast(device, config.dtype):
                    loss = forward(runtime.to_device(x, device), runtime.to_device(y, device))[1]
                loss = loss * (len(x) / len(inputs))
                state.scaler.scale(loss).backward()
            step_loss += loss.detach()
    except (MemoryError, RuntimeError) as error:
        # other ranks may be waiting for this one in the middle of the same step: they cannot begin it again
        if ranks.size() > 1 or _rows(state) == 1 or not runtime.is_out_of_memory(error):
            raise
        return None
    return step_loss


def _fits(state: TrainState, forward: Callable[..., Any], *, alone: bool) -> bool:
    """Whether memory suffices for micro-batches, in passes that do not count; `alone`: without the other ranks.

    `alone` it takes two, as many steps do: in the second the gradients of the first are there.
    """
    x = torch.zeros(_rows(state), state.config.block_size, dtype=torch.int64, device=state.device)
    try:
        for _ in range(2 if alone else 1):
            with ranks.gradients_stay(forward) if alone else nullcontext():
                with runtime.seeded(state.device), runtime.autocast(state.device, state.config.dtype):
                    loss = forward(x, x)[1]
                loss.backward()
    except (MemoryError, RuntimeError) as error:
        if not alone or not runtime.is_out_of_memory(error):
            raise
        return False
    state.optimizer.zero_grad()
    return True


def _halve(state: TrainState) -> None:
    """Let fewer rows through the network at a time, after a pass that memory did not suffice for."""
    state.optimizer.zero_grad()  # a part of them may be there
    state.micro_batch = math.ceil(_rows(state) / 2)
    runtime.free_memory(state.device)


def _rows(state: TrainState) -> int:
    """How many rows of a rank's share go through the network at a time, at most."""
    return min(state.micro_batch, state.config.rows_per_step // ranks.size())
