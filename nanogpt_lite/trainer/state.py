"""The state of a training run between two steps: made new, saved as a checkpoint, restored from one.

How a step changes it is in `step`, when it is evaluated and saved in `loop`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from nanogpt_lite.checkpoint import checkpoint_file
from nanogpt_lite.checkpoint.checkpoint_file import Checkpoint
from nanogpt_lite.checkpoint.metadata import SCALER_STATE_KEYS, CheckpointMetadata
from nanogpt_lite.checkpoint.restore import load_weights, read_config
from nanogpt_lite.checkpoint.validation import validate_weights
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
    """The mean of scalar tensors, added up on their device: `add` does not wait for a GPU, `pop` does."""

    def __init__(self, device: torch.device) -> None:
        self.total = torch.zeros((), device=device)
        self.count = 0

    def add(self, value: Tensor) -> None:
        """Add one value."""
        self.total += value
        self.count += 1

    def pop(self) -> float:
        """The mean of the values since the last call (0 without any); then start again from zero."""
        mean = self.total.item() / max(self.count, 1)
        self.total.zero_()
        self.count = 0
        return mean


@dataclass
class TrainState:
    """All that is needed to continue a run bit for bit; `step` is the number of completed steps."""

    config: TrainConfig
    tokenizer: Tokenizer
    dataset_sha256: str  # of the text; empty if it is not known
    device: torch.device
    group: ProcessGroup = SINGLE_PROCESS  # no part of a checkpoint
    step: int = 0
    last_eval_step: int = 0
    best_val_loss: float | None = None
    best_step: int = 0
    evals_since_best: int = 0
    seconds: float = 0.0  # time of all training steps; not stored in a checkpoint
    micro_batch: int = field(init=False)  # rows in one forward pass, at most
    model: GPT = field(init=False)
    optimizer: AdamW = field(init=False)
    scaler: torch.amp.GradScaler = field(init=False)
    grad_norm: Tensor = field(init=False)  # of the last step, before clipping
    since_log: RunningMean = field(init=False)  # training losses since the last StepRecord
    since_eval: RunningMean = field(init=False)  # and since the last EvalRecord

    def __post_init__(self) -> None:
        config, device = self.config, self.device
        with seeding.seeded(torch.device("cpu"), config.seed):  # made on the CPU: the same weights on every device
            self.model = GPT(config.subset(NetworkConfig), self.tokenizer.vocab_size).to(device)
        self.optimizer = build.make_optimizer(self.model, config)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.dtype == "float16")
        self.micro_batch = config.batch_size
        self.grad_norm = torch.zeros((), device=device)
        self.since_log, self.since_eval = RunningMean(device), RunningMean(device)


def init_state(
    config: TrainConfig, tokenizer: Tokenizer, *, dataset_sha256: str = "", group: ProcessGroup = SINGLE_PROCESS
) -> TrainState:
    """The state of a new run. Values that `config` leaves open (dtype and threads, lr_decay_iters) are chosen here."""
    device = devices.resolve_device(config.device, group)
    resolved: dict[str, Value] = {
        "dtype": devices.resolve_dtype(config.dtype, device, width=config.n_embd),
        "threads": devices.resolve_threads(config.threads),
        "tokenizer": tokenizer.to_json()["type"],
        "lr_decay_iters": config.lr_decay_iters or config.max_iters,
    }
    return TrainState(config.replace(resolved), tokenizer, dataset_sha256, device, group)


def save_state(state: TrainState, path: Path) -> None:
    """Write the state as a checkpoint.

    `ExternalError`, and no file, if the loss is not finite. `OSError` if the file cannot be written.
    """
    require_savable(state)
    checkpoint_file.write_checkpoint(path, dict(checkpoint_tensors(state)), make_metadata(state))


def checkpoint_tensors(state: TrainState) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a checkpoint: `model.NAME` and `optimizer.NAME.KEY`.

    `model` has each parameter, and the counts and the weight of the n-gram expert.
    """
    for name, parameter in state.model.named_parameters():
        yield f"model.{name}", parameter
    if state.model.expert is not None:
        for name, tensor in state.model.expert.ngram_counts._asdict().items():
            yield f"model.expert.{name}", tensor
        yield "model.expert.weight", state.model.expert.weight
    for name, parameter in state.model.named_parameters():
        for key, value in state.optimizer.state[parameter].items():
            yield f"optimizer.{name}.{key}", value


def make_metadata(state: TrainState) -> CheckpointMetadata:
    """All of the state that a checkpoint stores beside tensors."""
    return CheckpointMetadata(
        config=state.config,
        device=state.device.type,
        ranks=state.group.world_size,
        tokenizer=state.tokenizer.to_json(),
        dataset_sha256=state.dataset_sha256,
        scaler=state.scaler.state_dict(),
        micro_batch=state.micro_batch,
        since_log=(state.since_log.total.item(), state.since_log.count),
        since_eval=(state.since_eval.total.item(), state.since_eval.count),
        best_val_loss=state.best_val_loss,
        step=state.step,
        last_eval_step=state.last_eval_step,
        best_step=state.best_step,
        evals_since_best=state.evals_since_best,
    )


def restore_state(
    saved: Checkpoint, overrides: Mapping[str, Value], *, group: ProcessGroup = SINGLE_PROCESS
) -> TrainState:
    """The state in a checkpoint, ready to resume; the options in `overrides` replace stored ones.

    `UserError` if an override needs another network than the checkpoint has, or if the checkpoint is incomplete or
    invalid.
    """
    metadata = saved.metadata
    config, device = _resolve_auto(saved, overrides, group)
    tokenizer = tokenizer_from_json(metadata.tokenizer)
    validate_weights(config, tokenizer.vocab_size, saved)
    state = TrainState(config, tokenizer, metadata.dataset_sha256, device, group)
    load_weights(state.model, saved)
    _load_optimizer_state(state, saved)
    if metadata.scaler:
        scaler_state = {key: metadata.scaler[key] for key in SCALER_STATE_KEYS}
        state.scaler.load_state_dict({**state.scaler.state_dict(), **scaler_state})
    for mean, (total, count) in ((state.since_log, metadata.since_log), (state.since_eval, metadata.since_eval)):
        mean.total.fill_(total)
        mean.count = count
    state.step, state.last_eval_step = metadata.step, metadata.last_eval_step
    state.best_val_loss, state.best_step = metadata.best_val_loss, metadata.best_step
    state.evals_since_best = metadata.evals_since_best
    if config.batch_size == metadata.config.batch_size:  # how rows are split decides the last bits of a sum
        state.micro_batch = metadata.micro_batch
    return state


def _resolve_auto(
    saved: Checkpoint, overrides: Mapping[str, Value], group: ProcessGroup
) -> tuple[TrainConfig, torch.device]:
    """The config to resume with, and the device.

    dtype and threads are those of before, unless they were chosen for another device, a GPU that has bfloat16 in
    hardware, or another number of ranks.
    """
    metadata, config = saved.metadata, read_config(saved, overrides)
    device = devices.resolve_device(config.device, group)
    stored, resolved = metadata.config, dict[str, Value]()
    if overrides.get("dtype", "auto") == "auto":
        resolved["dtype"] = devices.resolve_stored_dtype(stored.dtype, metadata.device, device, width=config.n_embd)
    same_ranks = group.world_size == metadata.ranks  # each rank has its share of the threads
    threads = overrides.get("threads") or (stored.threads if same_ranks else 0)
    resolved["threads"] = devices.resolve_threads(int(threads))
    resolved["lr_decay_iters"] = config.lr_decay_iters or config.max_iters
    return config.replace(resolved), device


def require_savable(state: TrainState) -> None:
    """`ExternalError` if the loss since the last evaluation is not finite: the last checkpoint is to be kept."""
    require_finite(state, state.since_eval.total)


def require_finite(state: TrainState, loss: Tensor) -> None:
    """`ExternalError` if `loss`, or the norm of the last gradient, is not finite."""
    skips_steps = state.scaler.is_enabled()  # the scaler skips a step whose gradient is not finite
    if not (loss.isfinite() and (skips_steps or state.grad_norm.isfinite())):
        raise ExternalError(
            f"the loss or its gradient was not finite by step {state.step}; a checkpoint, if there is one, is from "
            "before that. Resume from it (`init_from='resume'`), or start again, with a lower `learning_rate` (and "
            "`muon_learning_rate`), more `warmup_iters`, a smaller `grad_clip`, or `dtype='float32'`"
        )


def _load_optimizer_state(state: TrainState, saved: Checkpoint) -> None:
    """Load the `optimizer.*` tensors. `UserError` if they belong to another optimizer."""
    shapes = build.optimizer_state_shapes(state.optimizer)
    has_optimizer_state = bool(saved.with_prefix("optimizer."))  # not so before the first step
    for name, parameter in state.model.named_parameters():
        tensors = saved.with_prefix(f"optimizer.{name}.")
        is_float32 = all(tensor.dtype == torch.float32 for tensor in tensors.values())
        is_match = is_float32 and {key: tensor.shape for key, tensor in tensors.items()} == shapes[parameter]
        if has_optimizer_state and not is_match:
            raise UserError(
                f"{saved.path} holds the state of another optimizer than {state.config.optimizer}; leave `optimizer` "
                f"out, or start a new run with these weights: `init_from={str(saved.path.parent)!r}`"
            )
        # copied, because the tensors that were read are memory-mapped, and another process may change the file
        state.optimizer.state[parameter] = {key: value.to(state.device, copy=True) for key, value in tensors.items()}
