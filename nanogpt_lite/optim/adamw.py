"""AdamW (Loshchilov and Hutter 2019): PyTorch's fused kernel without its optimizer class.

Creating a `torch.optim.AdamW` imports PyTorch's compiler, which adds a second to every start; the function
`torch.optim.adamw.adamw` does not. Parameter groups and state have the names that the class gives them.
"""

from collections import defaultdict
from typing import NotRequired, TypedDict

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from nanogpt_lite.device import fallbacks
from nanogpt_lite.device.fallbacks import FastPath


class ParamGroup(TypedDict):
    """Parameters that share their hyperparameters, as in `torch.optim`."""

    params: list[nn.Parameter]
    lr: float
    betas: tuple[float, float]
    weight_decay: float
    muon_momentum: NotRequired[float]  # present in groups for Muon only, see `muon`


class AdamW:
    """AdamW with one fused kernel for all parameters of a group, on devices where PyTorch has such a kernel."""

    def __init__(self, groups: list[ParamGroup]) -> None:
        self.param_groups = groups
        self.state: dict[Tensor, dict[str, Tensor]] = defaultdict(dict)

    @torch.no_grad()
    def step(self) -> None:
        """Update each parameter that has a gradient."""
        for group in self.param_groups:
            self._step_group(group)

    def zero_grad(self) -> None:
        """Set the gradients to None."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def state_shapes(self, group: ParamGroup, parameter: nn.Parameter) -> dict[str, torch.Size]:
        """The shape of each state tensor of a parameter in `group`, by name."""
        return {"step": torch.Size(), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}

    def _step_group(self, group: ParamGroup) -> None:
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        states = [self.state[parameter] for parameter in parameters]
        for parameter, state in zip(parameters, states, strict=True):
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
        beta1, beta2 = group["betas"]
        adamw(
            [*parameters],
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],  # max_exp_avg_sqs, for amsgrad only
            [state["step"] for state in states],
            foreach=False,
            fused=fallbacks.is_usable(FastPath.FUSED_ADAMW),
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=1e-8,
            maximize=False,
        )
