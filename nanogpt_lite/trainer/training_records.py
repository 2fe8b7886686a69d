"""The records of a training, made from its state, and the time of its steps. When they come is in `loop`."""

import time
from pathlib import Path

from nanogpt_lite.device import devices, fallbacks
from nanogpt_lite.device.gpus import mfu
from nanogpt_lite.optim.schedule import learning_rate
from nanogpt_lite.tracking.records import DoneRecord, StartRecord, StepRecord, StopReason
from nanogpt_lite.trainer.state import TrainState, require_finite


def start_record(state: TrainState, out_dir: Path, train_tokens: int, *, is_finished: bool) -> StartRecord:
    """Training starts or resumes, with `train_tokens` in the train split; `is_finished`: it takes no more steps."""
    config = state.config
    return StartRecord(
        step=state.step,
        out_dir=str(out_dir),
        parameters=state.model.num_parameters(),
        tokenizer=state.tokenizer.to_json()["type"],
        vocab_size=state.tokenizer.vocab_size,
        tokens_per_step=config.tokens_per_step,
        epochs=config.max_iters * config.tokens_per_step / train_tokens,
        max_iters=config.max_iters,
        device=devices.device_name(state.device),
        dtype=config.dtype,
        threads=config.threads,
        ranks=state.group.world_size,
        dropout=bool(config.dropout or config.ngram_dropout),
        fallbacks=fallbacks.describe(),
        is_finished=is_finished,
    )


def step_record(state: TrainState, timer: "StepTimer") -> StepRecord:
    """The steps since the last step record. `ExternalError` if their loss is not finite."""
    require_finite(state, state.since_log.total)
    config = state.config
    tokens_per_second = timer.pop_steps_per_second() * config.tokens_per_step
    per_rank = tokens_per_second / state.group.world_size
    return StepRecord(
        step=state.step,
        loss=state.since_log.pop(),
        learning_rate=learning_rate(state.step - 1, config),
        grad_norm=state.grad_norm.item() if state.grad_norm.isfinite() else None,
        tokens_per_second=tokens_per_second,
        mfu=mfu(per_rank, state.model.flops_per_token(), devices.device_name(state.device), config.dtype),
        seconds=state.seconds,
    )


def done_record(state: TrainState, reason: StopReason) -> DoneRecord:
    """Training ended."""
    return DoneRecord(
        step=state.step,
        reason=reason,
        best_val_loss=state.best_val_loss,
        best_step=state.best_step,
        seconds=state.seconds,
    )


class StepTimer:
    """Adds the time between `start` and `stop` to `state.seconds`. A second call of either has no effect."""

    def __init__(self, state: TrainState) -> None:
        self.state = state
        self.running_since: float | None = None
        self.logged_step, self.logged_seconds = state.step, state.seconds

    def start(self) -> None:
        """Steps follow."""
        if self.running_since is None:
            self.running_since = time.perf_counter()

    def stop(self) -> None:
        """Something else than steps follows. Waits for the device."""
        if self.running_since is not None:
            devices.synchronize(self.state.device)
            self.state.seconds += time.perf_counter() - self.running_since
            self.running_since = None

    def pop_steps_per_second(self) -> float:
        """The rate since the previous call; 0 if no time has passed."""
        steps, seconds = self.state.step - self.logged_step, self.state.seconds - self.logged_seconds
        self.logged_step, self.logged_seconds = self.state.step, self.state.seconds
        return steps / seconds if seconds else 0.0
