"""Make the optimizer that a config asks for, set its learning rates, and describe its state before the first step."""

import torch
from torch import Tensor, nn

from nanogpt_lite.config.options import TrainConfig
from nanogpt_lite.config.schema import Value
from nanogpt_lite.device import devices, fallbacks, fast_paths, memory
from nanogpt_lite.device.fallbacks import FastPath
from nanogpt_lite.optim.adamw import AdamW, ParamGroup
from nanogpt_lite.optim.muon import Muon
from nanogpt_lite.optim.schedule import learning_rate

# Of the check of fast paths. An update is compared alone: a parameter is larger by far, and would hide its changes.
# The rates make updates and their weight decay large whatever the config has, so that rounding does not hide them.
CHECKED_RATES: dict[str, Value] = {
    "learning_rate": 0.1,
    "min_lr": 0.1,
    "decay_lr": False,
    "muon_learning_rate": 0.1,
    "weight_decay": 0.1,
}
UPDATE_TOLERANCES = {
    FastPath.FUSED_ADAMW: 1e-3,
    FastPath.FOREACH: 0.02,  # Muon rounds the momenta to 16 bits, where a last bit in 32 can decide
}


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


def check_fast_paths(config: TrainConfig, device: torch.device) -> None:
    """Compare the optimizer's fast operators on a CUDA device with plain ones, and do without those that are wrong.

    They are compared on a small network: two updates with random gradients have to change its parameters as much.
    """
    if device.type == "cuda":
        _check_fast_path(FastPath.FUSED_ADAMW, config, device)
        if config.optimizer == "muon":
            _check_fast_path(FastPath.FOREACH, config, device)


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


def _check_fast_path(fast_path: FastPath, config: TrainConfig, device: torch.device) -> None:
    if not fallbacks.is_usable(fast_path):
        return
    try:
        results = _updates_of_small_network(config, device)
        with fallbacks.without(fast_path):
            expected = _updates_of_small_network(config, device)
    except RuntimeError as error:
        if memory.is_out_of_memory(error):
            return
        problem = str(error)
    else:
        problem = fast_paths.differs(results, expected, UPDATE_TOLERANCES[fast_path])
    if problem:
        fallbacks.give_up(fast_path, problem)


def _updates_of_small_network(config: TrainConfig, device: torch.device) -> list[Tensor]:
    """What two updates with random gradients add to each parameter of a small network with the config's optimizer."""
    config = config.replace(CHECKED_RATES)
    blocks = nn.ModuleList([nn.Linear(32, 96), nn.Linear(96, 32), nn.Linear(32, 96)])
    model = nn.ModuleDict({"transformer": nn.ModuleDict({"h": blocks}), "lm_head": nn.Linear(32, 50)}).to(device)
    generator = torch.Generator().manual_seed(0)
    parameters = [*model.parameters()]
    for parameter in parameters:
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer = make_optimizer(model, config)
    set_learning_rates(optimizer, 0, config)
    for _ in range(2):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(device)
        optimizer.step()
    return [parameter.detach() - old for parameter, old in zip(parameters, before, strict=True)]
