"""One optimizer step: forward and backward pass in micro-batches, gradient clipping, the optimizer's update.

When memory is not enough for a micro-batch, it is halved. Of several ranks each takes a share of the rows, and
DistributedDataParallel averages the gradients (`device.distributed.ProcessGroup.wrap_ddp`). The dropout masks are
seeded with (seed, step, micro-batch). When a step is taken is decided in `loop`, what comes before the first one is in
`network_setup`; the optimizers are in `optim`.
"""

import math
from contextlib import nullcontext
from typing import cast

import torch
from torch import Tensor

from nanogpt_lite.data import batching
from nanogpt_lite.data.batching import Batch
from nanogpt_lite.device import devices, distributed, memory, seeding
from nanogpt_lite.device.distributed import Forward
from nanogpt_lite.model.compilation import gives_up_compilation
from nanogpt_lite.optim import build
from nanogpt_lite.trainer.state import TrainState


def train_step(state: TrainState, forward: Forward, batch: Batch) -> None:
    """One optimizer step on inputs and targets of shape (rows, T), of which each rank takes an equal share.

    A share goes through the network in micro-batches of at most `state.micro_batch` rows. If memory is not enough, they
    become smaller: the result is the same, except for dropout masks. If a pass cannot be compiled, it is repeated as a
    plain one. PyTorch's error if one row is too much, or if either happens while other ranks wait.
    """
    config = state.config
    assert len(batch[0]) == config.rows_per_step, f"a step takes {config.rows_per_step} rows"
    inputs, targets = (tensor[state.group.rank_slice(config.rows_per_step)] for tensor in batch)
    build.set_learning_rates(state.optimizer, state.step, config)
    if not state.model.training:  # the test is free, while train() visits every module
        state.model.train()
    while (step_loss := _try_micro_batches(state, forward, inputs, targets)) is None:
        pass  # once more, in another way
    optimizer = cast(torch.optim.Optimizer, state.optimizer)  # GradScaler only needs its param_groups and step()
    state.scaler.unscale_(optimizer)
    gradients = [parameter.grad for parameter in state.model.parameters() if parameter.grad is not None]
    state.grad_norm = torch.nn.utils.get_total_norm(gradients)
    if config.grad_clip:
        torch.nn.utils.clip_grads_with_norm_(state.model.parameters(), config.grad_clip, state.grad_norm)
    state.scaler.step(optimizer)
    state.scaler.update()
    state.optimizer.zero_grad()
    step_loss = state.group.all_reduce_mean(step_loss)
    state.since_log.add(step_loss)
    state.since_eval.add(step_loss)
    state.step += 1


def halve_micro_batch(state: TrainState) -> None:
    """Take half as many rows at a time, after memory was not enough."""
    state.micro_batch = math.ceil(micro_batch_rows(state) / 2)
    memory.free_memory(state.device)


def micro_batch_rows(state: TrainState) -> int:
    """The largest number of rows that go through the network at a time: not more than a rank's share."""
    return min(state.micro_batch, state.config.rows_per_step // state.group.world_size)


def _try_micro_batches(state: TrainState, forward: Forward, inputs: Tensor, targets: Tensor) -> Tensor | None:
    """As `_backward_micro_batches`; None if it has failed and can be repeated in another way."""
    try:
        return _backward_micro_batches(state, forward, inputs, targets)
    except (MemoryError, RuntimeError) as error:
        # with several ranks, others may wait in the middle of this step, so it cannot be repeated
        if state.group.world_size > 1:
            raise
        is_too_large = memory.is_out_of_memory(error) and micro_batch_rows(state) > 1
        if not is_too_large and not gives_up_compilation(error):
            raise
    # outside of `except`, where the error keeps what the pass has computed
    state.optimizer.zero_grad()  # of some parameters, from the failed pass
    if is_too_large:
        halve_micro_batch(state)
    return None


def _backward_micro_batches(state: TrainState, forward: Forward, inputs: Tensor, targets: Tensor) -> Tensor:
    """The mean loss of this rank's rows, after accumulating its gradients."""
    config, device = state.config, state.device
    micro_batches = list(batching.split_batch((inputs, targets), state.micro_batch))
    losses = []
    for number, (x, y) in enumerate(micro_batches):
        mask_seed = (config.seed, state.step, state.group.rank * len(micro_batches) + number)
        with (
            seeding.seeded(device, *mask_seed) if config.dropout or config.ngram_dropout else nullcontext(),
            distributed.no_sync(forward) if number + 1 < len(micro_batches) else nullcontext(),
        ):
            with devices.autocast(device, config.dtype):
                loss = forward(devices.to_device(x, device), devices.to_device(y, device))[1]
            if len(micro_batches) > 1:
                loss = loss * (len(x) / len(inputs))
            state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
    return sum(losses[1:], losses[0])
