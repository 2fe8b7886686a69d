"""Make the optimizer that a config asks for, set its learning rates, and describe its state before the first step."""

import torch
from torch import Tensor, nn

from nanogpt_lite.config.options import TrainConfig
from nanogpt_lite.device import devices
from nanogpt_lite.optim.adamw import AdamW, ParamGroup
from nanogpt_lite.optim.muon import Muon
from nanogpt_lite.optim.schedule import learning_rate


def make_optimizer(model: nn.Module, config: TrainConfig) -> AdamW:
    """Return AdamW for all parameters, or with `config.optimizer` "muon", Muon for the blocks' matrices, AdamW else.

    Matrices and embeddings have weight decay; biases and the scales of norms do not, as in nanoGPT.
    """
    parameters = dict(model.named_parameters())
    use_muon = config.optimizer == "muon"
    muon_names = {name for name, p in parameters.items() if use_muon and p.dim() == 2 and ".h." in name}
    adamw_params = [p for name, p in parameters.items() if name not in muon_names]

    def make_group(params: list[nn.Parameter], weight_decay: float) -> ParamGroup:
        betas = (config.beta1, config.beta2)
        return {"lr": config.learning_rate, "betas": betas, "params": params, "weight_decay": weight_decay}

    groups = [
        make_group([p for p in adamw_params if p.dim() >= 2], config.weight_decay),
        make_group([p for p in adamw_params if p.dim() < 2], 0.0),
    ]
    if config.optimizer == "adamw":
        return AdamW(groups)
    assert config.optimizer == "muon", config.optimizer
    muon_group = make_group([parameters[name] for name in sorted(muon_names)], config.weight_decay)
    muon_group["muon_momentum"] = config.muon_momentum
    model_device = muon_group["params"][0].device
    return Muon([*groups, muon_group], newton_schulz_dtype=newton_schulz_dtype(config.dtype, model_device))


def newton_schulz_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The format of Muon's iteration: that of the network's products, or another one in which the device is fast."""
    if dtype == "bfloat16":
        return torch.float16 if devices.emulates_bfloat16(device) else torch.bfloat16
    return torch.float16 if dtype == "float16" and device.type == "cuda" else torch.float32


def set_learning_rates(optimizer: AdamW, step: int, config: TrainConfig) -> None:
    """Set the learning rate of each parameter group for step `step` (from 0).

    Muon's rate is a fixed multiple of AdamW's: `muon_learning_rate / learning_rate`.
    """
    rate = learning_rate(step, config)
    for group in optimizer.param_groups:
        is_muon = "muon_momentum" in group
        group["lr"] = rate * (config.muon_learning_rate / config.learning_rate) if is_muon else rate


def optimizer_state_shapes(optimizer: AdamW) -> dict[Tensor, dict[str, torch.Size]]:
    """Return the shape of each state tensor, by parameter and by PyTorch's name for it ("exp_avg", ...)."""
    return {
        parameter: optimizer.state_shapes(group, parameter)
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def reserve_optimizer_state(optimizer: AdamW) -> list[Tensor]:
    """Return uninitialised tensors with the shapes and devices of the optimizer state.

    The state exists only after the first step. While the caller holds these tensors, it can test what fits into memory
    beside them.
    """
    return [
        torch.empty(shape, device=parameter.device)
        for parameter, shapes in optimizer_state_shapes(optimizer).items()
        for shape in shapes.values()
    ]
