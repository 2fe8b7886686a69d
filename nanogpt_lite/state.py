"""A run between two steps, and its form as a checkpoint: everything that going on exactly needs.

How a state changes is the business of `trainer`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanogpt_lite import checkpoint, optim, ranks, runtime
from nanogpt_lite.adamw import AdamW
from nanogpt_lite.checkpoint import Checkpoint
from nanogpt_lite.config import SHAPE_FIELDS, NetworkConfig, TrainConfig
from nanogpt_lite.errors import UserError, WorldError
from nanogpt_lite.inspection import COUNTERS, SCALER_NUMBERS, fit, other_network, require_description, require_weights
from nanogpt_lite.model import GPT
from nanogpt_lite.options import Value
from nanogpt_lite.tokenizer import Tokenizer
from nanogpt_lite.vocabulary import from_json


class Mean:
    """A mean that takes in tensors without waiting for them to be computed."""

    def __init__(self, device: torch.device) -> None:
        self.total = torch.zeros((), device=device)
        self.count = 0

    def add(self, value: Tensor) -> None:
        """Take in one more value."""
        self.total += value
        self.count += 1

    def take(self) -> float:
        """The mean of what came in since the last time."""
        mean = self.total.item() / max(self.count, 1)
        self.total.zero_()
        self.count = 0
        return mean


@dataclass
class TrainState:
    """A run between two steps: everything that going on exactly needs. `step` steps are done."""

    config: TrainConfig
    tokenizer: Tokenizer
    dataset_sha256: str  # of the text; empty if the batches come from elsewhere
    device: torch.device
    step: int = 0
    evaluated: int = 0  # the step of the last evaluation
    best_val_loss: float | None = None
    best_step: int = 0
    evals_since_best: int = 0
    seconds: float = 0.0  # of training steps; no part of a checkpoint
    micro_batch: int = field(init=False)  # rows that go through the network at a time, at most
    model: GPT = field(init=False)
    optimizer: AdamW = field(init=False)
    scaler: torch.amp.GradScaler = field(init=False)
    grad_norm: Tensor = field(init=False)  # of the last step, before clipping
    since_log: Mean = field(init=False)  # the loss of the steps since the last StepRecord
    since_eval: Mean = field(init=False)  # and since the last EvalRecord

    def __post_init__(self) -> None:
        config, device = self.config, self.device
        with runtime.seeded(torch.device("cpu"), config.seed):  # on the CPU: the same weights for every device
            self.model = GPT(config.part(NetworkConfig), self.tokenizer.vocab_size).to(device)
        self.optimizer = optim.make_optimizer(self.model, config)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.dtype == "float16")
        self.micro_batch = config.batch_size
        self.grad_norm = torch.zeros((), device=device)
        self.since_log, self.since_eval = Mean(device), Mean(device)


def start(config: TrainConfig, tokenizer: Tokenizer, *, dataset_sha256: str = "") -> TrainState:
    """A new run. What `config` leaves to the machine (dtype, threads) and to other options is settled here."""
    device = runtime.resolve_device(config.device)
    settled: dict[str, Value] = {
        "dtype": runtime.resolve_dtype(config.dtype, device, width=config.n_embd),
        "threads": runtime.resolve_threads(config.threads),
        "tokenizer": tokenizer.to_json()["type"],
        "lr_decay_iters": config.lr_decay_iters or config.max_iters,
    }
    return TrainState(config.replace(settled), tokenizer, dataset_sha256, device)


def save(state: TrainState, path: Path) -> None:
    """Write the state as a checkpoint. `WorldError`, and nothing written, if it is not finite."""
    require_finite(state, state.since_eval.total)
    tensors: dict[str, Tensor] = {f"model.{key}": parameter for key, parameter in state.model.named_parameters()}
    for key, parameter in state.model.named_parameters():
        for slot, value in state.optimizer.state[parameter].items():
            tensors[f"optimizer.{key}.{slot}"] = value
    checkpoint.save(path, tensors, describe(state))


def describe(state: TrainState) -> dict[str, Any]:
    """What a checkpoint says of the state beside its tensors, as a JSON object."""
    return {
        "config": state.config.stored(),
        "device": state.device.type,
        "ranks": ranks.size(),
        "tokenizer": state.tokenizer.to_json(),
        "dataset_sha256": state.dataset_sha256,
        "scaler": state.scaler.state_dict(),
        "micro_batch": state.micro_batch,
        "since_log": [state.since_log.total.item(), state.since_log.count],
        "since_eval": [state.since_eval.total.item(), state.since_eval.count],
        "best_val_loss": state.best_val_loss,
        **{key: getattr(state, key) for key in COUNTERS},
    }


def restore(saved: Checkpoint, given: Mapping[str, Value]) -> TrainState:
    """The state in a checkpoint, to go on with; options in `given` replace stored ones.

    `UserError` if an option in `given` asks for another network than the checkpoint has, or if the file does not
    hold a whole state.
    """
    about = saved.about
    try:
        require_description(about)
        config, device = _settle(saved, given)
        tokenizer = from_json(about["tokenizer"])
        require_weights(config, tokenizer.vocab_size, saved)
        state = TrainState(config, tokenizer, str(about["dataset_sha256"]), device)
        load_weights(state.model, saved)
        _load_slots(state, saved)
        if about["scaler"]:
            numbers = {name: about["scaler"][name] for name in SCALER_NUMBERS}
            state.scaler.load_state_dict({**state.scaler.state_dict(), **numbers})
        for mean, (total, count) in [
            (state.since_log, about["since_log"]),
            (state.since_eval, about["since_eval"]),
        ]:
            mean.total.fill_(total)
            mean.count = count
        for key in (*COUNTERS, "best_val_loss"):
            setattr(state, key, about[key])
        if config.batch_size == about["config"]["batch_size"]:  # as before: the split decides the last bits of a sum
            state.micro_batch = about["micro_batch"]
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{saved.path} does not hold a whole training state ({error}); use another checkpoint"
        ) from error
    return state


def _settle(saved: Checkpoint, given: Mapping[str, Value]) -> tuple[TrainConfig, torch.device]:
    """What a run that goes on leaves to the machine: as before, unless that was for another one."""
    about, config = saved.about, config_of(saved, given)
    device = runtime.resolve_device(config.device)
    before, settled = about["config"], dict[str, Value]()
    if given.get("dtype", "auto") == "auto":
        same = device.type == about["device"]
        settled["dtype"] = before["dtype"] if same else runtime.resolve_dtype("auto", device, width=config.n_embd)
    same = ranks.size() == about["ranks"]  # else the threads were each one's share
    settled["threads"] = runtime.resolve_threads(int(given.get("threads") or (before["threads"] if same else 0)))
    settled["lr_decay_iters"] = config.lr_decay_iters or config.max_iters
    return config.replace(settled), device


def config_of(saved: Checkpoint, given: Mapping[str, Value]) -> TrainConfig:
    """The config in a checkpoint with the options in `given`. `UserError` if they ask for another network."""
    require_same_network(saved, given)
    stored = saved.about["config"]
    kept = {"init_from": stored["init_from"], "tokenizer": stored["tokenizer"]}
    return TrainConfig.from_dict({**stored, **given, **kept})


def network_of(saved: Checkpoint) -> tuple[TrainConfig, Tokenizer]:
    """The config and the tokenizer in a checkpoint. `UserError` if it lacks one of them."""
    try:
        require_description(saved.about)
        return config_of(saved, {}), from_json(saved.about["tokenizer"])
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{saved.path} does not describe its network ({error}); use another checkpoint") from error


def require_same_network(saved: Checkpoint, given: Mapping[str, Value]) -> None:
    """`UserError` if an option in `given` asks for another network than the checkpoint has."""
    stored = {**TrainConfig().stored(), **saved.about["config"]}  # an older checkpoint has fewer options
    other = [
        f"{name}={given[name]} (the checkpoint has {stored[name]})"
        for name in (*SHAPE_FIELDS, "tokenizer")
        if name in given and given[name] not in (stored[name], "auto")
    ]
    if other:
        raise UserError(
            f"{saved.path} holds another network than asked for: {', '.join(other)}; "
            "leave these options out, or begin a run from scratch, in another out_dir"
        )


def load_weights(model: GPT, saved: Checkpoint) -> None:
    """Copy a checkpoint's weights into a model. `UserError` unless each has its name and shape there."""
    found = saved.part("model.")
    if not fit(model, found):
        raise other_network(saved)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(found[name])


def require_finite(state: TrainState, loss: Tensor) -> None:
    """`WorldError` if the loss or the gradient is not finite."""
    scaled = state.scaler.is_enabled()  # it leaves out a step whose gradient is not finite
    if not (loss.isfinite() and (scaled or state.grad_norm.isfinite())):
        raise WorldError(
            f"the loss or its gradient was not finite by step {state.step}; a checkpoint, if there is one, is from "
            "before that. Go on from it (--init_from resume), or begin again, with a lower --learning_rate (and "
            "--muon_learning_rate), more --warmup_iters, a smaller --grad_clip, or --dtype float32"
        )


def _load_slots(state: TrainState, saved: Checkpoint) -> None:
    """Give the optimizer its means. `UserError` if they are another optimizer's."""
    shapes, begun = optim.slot_shapes(state.optimizer), saved.part("optimizer.")
    for key, parameter in state.model.named_parameters():
        slots = saved.part(f"optimizer.{key}.")
        numbers = all(value.dtype == torch.float32 for value in slots.values())
        if begun and not (numbers and {slot: value.shape for slot, value in slots.items()} == shapes[parameter]):
            raise UserError(
                f"{saved.path} holds the means of another optimizer than {state.config.optimizer}; leave --optimizer "
                f"out, or begin a new run with these weights: --init_from {saved.path.parent}"
            )
        # copied, since what was read is a map of the file, which others may change
        state.optimizer.state[parameter] = {slot: value.to(state.device, copy=True) for slot, value in slots.items()}
