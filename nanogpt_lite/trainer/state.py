"""A run between two steps, and its form as a checkpoint: everything that going on exactly needs.

How a state changes is the business of `trainer`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanogpt_lite.checkpoint import checkpoint_file
from nanogpt_lite.checkpoint.checkpoint_file import Checkpoint
from nanogpt_lite.checkpoint.restore import load_weights, read_config
from nanogpt_lite.checkpoint.validation import (
    COUNTERS,
    SCALER_FIELDS,
    validate_metadata,
    validate_weights,
)
from nanogpt_lite.config.options import NetworkConfig, TrainConfig
from nanogpt_lite.config.schema import Value
from nanogpt_lite.device import devices, seeding
from nanogpt_lite.device.distributed import SINGLE_PROCESS, ProcessGroup
from nanogpt_lite.errors import ExternalError, UserError
from nanogpt_lite.model.gpt import GPT
from nanogpt_lite.optim import build
from nanogpt_lite.optim.adamw import AdamW
from nanogpt_lite.tokenizers.base import Tokenizer
from nanogpt_lite.tokenizers.registry import tokenizer_from_json


class RunningMean:
    """A mean that takes in tensors without waiting for them to be computed."""

    def __init__(self, device: torch.device) -> None:
        self.total = torch.zeros((), device=device)
        self.count = 0

    def add(self, value: Tensor) -> None:
        """Take in one more value."""
        self.total += value
        self.count += 1

    def pop(self) -> float:
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
    group: ProcessGroup = SINGLE_PROCESS  # no part of a checkpoint
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
    since_log: RunningMean = field(init=False)  # the loss of the steps since the last StepRecord
    since_eval: RunningMean = field(init=False)  # and since the last EvalRecord

    def __post_init__(self) -> None:
        config, device = self.config, self.device
        with seeding.seeded(torch.device("cpu"), config.seed):  # on the CPU: the same weights for every device
            self.model = GPT(config.subset(NetworkConfig), self.tokenizer.vocab_size).to(device)
        self.optimizer = build.make_optimizer(self.model, config)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.dtype == "float16")
        self.micro_batch = config.batch_size
        self.grad_norm = torch.zeros((), device=device)
        self.since_log, self.since_eval = RunningMean(device), RunningMean(device)


def init_state(
    config: TrainConfig, tokenizer: Tokenizer, *, dataset_sha256: str = "", group: ProcessGroup = SINGLE_PROCESS
) -> TrainState:
    """A new run. What `config` leaves to the machine (dtype, threads) and to other options is settled here."""
    device = devices.resolve_device(config.device, group)
    settled: dict[str, Value] = {
        "dtype": devices.resolve_dtype(config.dtype, device, width=config.n_embd),
        "threads": devices.resolve_threads(config.threads),
        "tokenizer": tokenizer.to_json()["type"],
        "lr_decay_iters": config.lr_decay_iters or config.max_iters,
    }
    return TrainState(config.replace(settled), tokenizer, dataset_sha256, device, group)


def save_state(state: TrainState, path: Path) -> None:
    """Write the state as a checkpoint. `ExternalError`, and nothing written, if it is not finite."""
    require_finite(state, state.since_eval.total)
    tensors: dict[str, Tensor] = {f"model.{key}": parameter for key, parameter in state.model.named_parameters()}
    for key, parameter in state.model.named_parameters():
        for slot, value in state.optimizer.state[parameter].items():
            tensors[f"optimizer.{key}.{slot}"] = value
    checkpoint_file.write_checkpoint(path, tensors, state_metadata(state))


def state_metadata(state: TrainState) -> dict[str, Any]:
    """What a checkpoint says of the state beside its tensors, as a JSON object."""
    return {
        "config": state.config.stored(),
        "device": state.device.type,
        "ranks": state.group.world_size,
        "tokenizer": state.tokenizer.to_json(),
        "dataset_sha256": state.dataset_sha256,
        "scaler": state.scaler.state_dict(),
        "micro_batch": state.micro_batch,
        "since_log": [state.since_log.total.item(), state.since_log.count],
        "since_eval": [state.since_eval.total.item(), state.since_eval.count],
        "best_val_loss": state.best_val_loss,
        **{key: getattr(state, key) for key in COUNTERS},
    }


def restore_state(saved: Checkpoint, given: Mapping[str, Value], *, group: ProcessGroup = SINGLE_PROCESS) -> TrainState:
    """The state in a checkpoint, to go on with; options in `given` replace stored ones.

    `UserError` if an option in `given` asks for another network than the checkpoint has, or if the file does not
    hold a whole state.
    """
    about = saved.metadata
    try:
        validate_metadata(about)
        config, device = _resolve_auto(saved, given, group)
        tokenizer = tokenizer_from_json(about["tokenizer"])
        validate_weights(config, tokenizer.vocab_size, saved)
        state = TrainState(config, tokenizer, str(about["dataset_sha256"]), device, group)
        load_weights(state.model, saved)
        _load_optimizer_state(state, saved)
        if about["scaler"]:
            numbers = {name: about["scaler"][name] for name in SCALER_FIELDS}
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


def _resolve_auto(
    saved: Checkpoint, given: Mapping[str, Value], group: ProcessGroup
) -> tuple[TrainConfig, torch.device]:
    """What a run that goes on leaves to the machine: as before, unless that was for another one."""
    about, config = saved.metadata, read_config(saved, given)
    device = devices.resolve_device(config.device, group)
    before, settled = about["config"], dict[str, Value]()
    if given.get("dtype", "auto") == "auto":
        same = device.type == about["device"]
        settled["dtype"] = before["dtype"] if same else devices.resolve_dtype("auto", device, width=config.n_embd)
    same = group.world_size == about["ranks"]  # else the threads were each one's share
    settled["threads"] = devices.resolve_threads(int(given.get("threads") or (before["threads"] if same else 0)))
    settled["lr_decay_iters"] = config.lr_decay_iters or config.max_iters
    return config.replace(settled), device


def require_finite(state: TrainState, loss: Tensor) -> None:
    """`ExternalError` if the loss or the gradient is not finite."""
    scaled = state.scaler.is_enabled()  # it leaves out a step whose gradient is not finite
    if not (loss.isfinite() and (scaled or state.grad_norm.isfinite())):
        raise ExternalError(
            f"the loss or its gradient was not finite by step {state.step}; a checkpoint, if there is one, is from "
            "before that. Go on from it (--init_from resume), or begin again, with a lower --learning_rate (and "
            "--muon_learning_rate), more --warmup_iters, a smaller --grad_clip, or --dtype float32"
        )


def _load_optimizer_state(state: TrainState, saved: Checkpoint) -> None:
    """Give the optimizer its means. `UserError` if they are another optimizer's."""
    shapes, begun = build.optimizer_state_shapes(state.optimizer), saved.with_prefix("optimizer.")
    for key, parameter in state.model.named_parameters():
        slots = saved.with_prefix(f"optimizer.{key}.")
        numbers = all(value.dtype == torch.float32 for value in slots.values())
        if begun and not (numbers and {slot: value.shape for slot, value in slots.items()} == shapes[parameter]):
            raise UserError(
                f"{saved.path} holds the means of another optimizer than {state.config.optimizer}; leave --optimizer "
                f"out, or begin a new run with these weights: --init_from {saved.path.parent}"
            )
        # copied, since what was read is a map of the file, which others may change
        state.optimizer.state[parameter] = {slot: value.to(state.device, copy=True) for slot, value in slots.items()}
