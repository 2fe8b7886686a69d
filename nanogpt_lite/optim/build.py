"""The optimizer and its learning rate. When to step is the business of `trainer`."""

from typing import Any

import torch
from torch import Tensor, nn

from nanogpt_lite.config.options import TrainConfig
from nanogpt_lite.optim.adamw import AdamW
from nanogpt_lite.optim.muon import Muon
from nanogpt_lite.optim.schedule import learning_rate


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


def optimizer_state_shapes(optimizer: AdamW) -> dict[Tensor, dict[str, torch.Size]]:
    """What the optimizer keeps of each parameter, by name, and its shape."""
    return {
        parameter: {"momentum_buffer": parameter.shape}
        if "muon_momentum" in group
        else {"step": torch.Size(), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def reserve_optimizer_state(optimizer: AdamW) -> list[Tensor]:
    """The memory that the optimizer takes at its first step."""
    return [
        torch.empty(shape, device=parameter.device)
        for parameter, slots in optimizer_state_shapes(optimizer).items()
        for shape in slots.values()
    ]
