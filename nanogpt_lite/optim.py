"""The optimizer and its learning rate. When to step is the business of `trainer`."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from nanogpt_lite.adamw import AdamW
from nanogpt_lite.config import TrainConfig
from nanogpt_lite.muon import Muon


def make_optimizer(model: nn.Module, config: TrainConfig) -> AdamW:
    """AdamW that decays matrices and embeddings, not biases and gains; or Muon beside it."""
    parameters = dict(model.named_parameters())
    by_muon = {n for n, p in parameters.items() if p.dim() == 2 and ".h." in n} if config.optimizer == "muon" else set()
    rest = [p for n, p in parameters.items() if n not in by_muon]
    common: dict[str, Any] = {"lr": config.learning_rate, "betas": (config.beta1, config.beta2)}
    groups: list[dict[str, Any]] = [
        {**common, "params": [p for p in rest if p.dim() >= 2], "weight_decay": config.weight_decay},
        {**common, "params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
    ]
    if not by_muon:
        return AdamW(groups)
    matrices = [parameters[name] for name in sorted(by_muon)]
    momentum = config.muon_momentum
    groups.append({**common, "params": matrices, "weight_decay": config.weight_decay, "muon_momentum": momentum})
    return Muon(groups, products=torch.bfloat16 if config.dtype == "bfloat16" else torch.float32)


def set_learning_rates(optimizer: AdamW, step: int, config: TrainConfig) -> None:
    """Give each parameter group its rate for step `step` (from 0)."""
    rate = learning_rate(step, config)
    for group in optimizer.param_groups:
        of_muon = "muon_momentum" in group
        group["lr"] = rate * (config.muon_learning_rate / config.learning_rate) if of_muon else rate


def slot_shapes(optimizer: AdamW) -> dict[Tensor, dict[str, torch.Size]]:
    """What the optimizer keeps of each parameter, by name, and its shape."""
    return {
        parameter: {"momentum_buffer": parameter.shape}
        if "muon_momentum" in group
        else {"step": torch.Size(), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def slots_to_be(optimizer: AdamW) -> list[Tensor]:
    """The memory that the optimizer takes at its first step."""
    return [
        torch.empty(shape, device=parameter.device)
        for parameter, slots in slot_shapes(optimizer).items()
        for shape in slots.values()
    ]


def learning_rate(step: int, config: TrainConfig) -> float:
    """The learning rate of step `step` (from 0): linear warm-up, then a half cosine down to `min_lr`.

    nanoGPT's formula, where `lr_decay_iters` 0 stands for `max_iters`. With a `cooldown` there is no cosine: the rate
    stays, and falls in a straight line over that last share of the steps (Hägele et al. 2024).
    """
    if not config.decay_lr:
        return config.learning_rate
    if step < config.warmup_iters:
        return config.learning_rate * (step + 1) / (config.warmup_iters + 1)
    end = config.lr_decay_iters or config.max_iters
    if step >= end:
        return config.min_lr
    if config.cooldown:
        left = (end - step) / (config.cooldown * end)
        return config.min_lr + min(1.0, left) * (config.learning_rate - config.min_lr)
    progress = (step - config.warmup_iters) / (end - config.warmup_iters)
    return config.min_lr + 0.5 * (1 + math.cos(math.pi * progress)) * (config.learning_rate - config.min_lr)
