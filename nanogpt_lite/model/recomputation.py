"""Activation checkpointing: what the backward pass needs is computed again there, instead of kept until then.

Chen et al. 2016, "Training deep nets with sublinear memory cost". `gpt` applies it to each block and to the loss. How
much memory a step takes with it and without is in `trainer.memory_estimate`.
"""

from collections.abc import Callable
from math import ceil
from typing import TypeVarTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from nanogpt_lite.config.options import MAX_LOGITS
from nanogpt_lite.device import devices, seeding

Arguments = TypeVarTuple("Arguments")


def recomputed(function: Callable[[*Arguments], Tensor], *args: *Arguments) -> Tensor:
    """Return `function(*args)`; of what autograd would keep, only the arguments. The backward pass calls it again.

    The second call draws the same random numbers, so that dropout has the same masks, and has the same autocast. The
    first call in a process imports PyTorch's compiler, which takes a second.
    """
    result: Tensor
    if any(isinstance(arg, Tensor) and arg.is_mps for arg in args) and not torch.compiler.is_compiling():
        # PyTorch restores the random numbers of the CPU and of CUDA, but not those of MPS
        result = checkpoint(function, *args, use_reentrant=False, context_fn=seeding.replay_mps)
    else:
        result = checkpoint(function, *args, use_reentrant=False)
    return result


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits `hidden @ weight.T` with `targets`, in nats per token.

    `hidden` (B, T, C), `weight` (V, C), `targets` (B, T). If there are more than `MAX_LOGITS` logits, their loss is
    computed in parts of equally many tokens, and never are all logits in memory at once: the backward pass computes
    those of a part again. The sums over parts have another order, which changes the last bits.
    """
    hidden, targets = hidden.flatten(0, 1), targets.flatten()  # (B T, C), (B T,)
    num_parts = ceil(len(targets) * len(weight) / MAX_LOGITS)
    if num_parts <= 1:
        return F.cross_entropy(F.linear(hidden, weight), targets)
    parts = zip(hidden.chunk(num_parts), targets.chunk(num_parts), strict=True)
    losses = [recomputed(_sum_of_losses, part, weight, part_targets) for part, part_targets in parts]
    return torch.stack(losses).sum() / len(targets)


def _sum_of_losses(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    # Autocast would make one copy of the weights for all parts, and add up their gradients in 16 bits.
    logits = F.linear(hidden, weight.to(devices.linear_dtype(hidden)))
    return F.cross_entropy(logits, targets, reduction="sum")
