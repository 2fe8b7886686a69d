"""The loop: a generator of records.

Between two records the state is whole, so whoever iterates may stop, draw a sample or copy the run's folder
there. Where records are written is left to `logs`, what a run's folder is called to `runs`. Of several `ranks` each
goes through all of this, with a share of the rows.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from nanogpt_lite.checkpoint.checkpoint_file import SUFFIX
from nanogpt_lite.data import batching
from nanogpt_lite.data.batching import Batch, Tokens
from nanogpt_lite.device import devices, distributed, memory, profiling
from nanogpt_lite.device.peak_flops import mfu
from nanogpt_lite.optim.schedule import learning_rate
from nanogpt_lite.tracking.records import (
    CheckpointRecord,
    DoneRecord,
    EvalRecord,
    MicroBatchRecord,
    Record,
    StartRecord,
    StepRecord,
)
from nanogpt_lite.trainer import evaluation
from nanogpt_lite.trainer.state import TrainState, require_finite, save_state
from nanogpt_lite.trainer.step import train_step, wrap_and_probe


def train_loop(
    state: TrainState,
    train_tokens: Tokens,
    val_tokens: Tokens,
    *,
    out_dir: Path,
    train_batches: Iterator[Batch] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Record]:
    """Train until the config says that it is enough or `stop()` is true; records come out as things happen.

    `train_tokens` and `val_tokens` are the splits, shape (tokens,). `train_batches` replaces random batches of the
    first: from step `state.step` on, each with `batch_size * gradient_accumulation_steps` rows. Checkpoints are
    written to `out_dir`; one is on disk, whole, when its record comes out.

    `UserError` if a split is too short. `WorldError` if the loss is no longer finite: the last checkpoint is from
    before that. `OSError` if a checkpoint cannot be written.
    """
    config, model = state.config, state.model
    batching.require_length(train_tokens, val_tokens, block_size=config.block_size, sampled_val=config.eval_iters > 0)
    train_batches = train_batches or batching.random_batches(
        train_tokens, rows=config.rows_per_step, block_size=config.block_size, seed=config.seed, step=state.step
    )
    saved = state.step if state.step else None
    with (
        devices.use_threads(config.threads),
        memory.retain_heap(),
        profiling.trace_steps(config.trace, state.device) as step_is_done,
    ):
        yield _start_record(state, out_dir, len(train_tokens))
        micro_batch = state.micro_batch
        forward = torch.compile(model) if config.compile else model
        if not stop_reason(state):
            forward = wrap_and_probe(state, forward)
        clock = _StepTimer(state)
        begun = time.monotonic()
        while True:
            stopped, seconds = distributed.all_reduce_max(stop(), time.monotonic() - begun)
            reason = "interrupted" if stopped else stop_reason(state, seconds)
            if _is_eval_due(state, reason):
                clock.stop()
                val_loss = evaluation.val_loss(state, val_tokens, stop)
                if val_loss is not None:
                    record = _record_eval(state, val_loss)
                    yield record
                    for name in ["best", "last"] if record.is_best else ["last"]:
                        yield _save_checkpoint(state, out_dir, name)
                    saved = state.step
                continue  # it may have been the last evaluation, or cut short by a request to stop
            if reason:
                break
            clock.start()
            batch = next(train_batches, None)
            if batch is None:
                reason = "batches"
                break
            train_step(state, forward, batch)
            step_is_done()
            if state.micro_batch < micro_batch:
                micro_batch = state.micro_batch
                yield MicroBatchRecord(step=state.step, rows=micro_batch)
            if is_due(config.log_interval, state.step) or is_due(config.sample_interval, state.step):
                clock.stop()
                yield _step_record(state, clock)
            if is_due(config.keep_every, state.step):
                clock.stop()
                yield _save_checkpoint(state, out_dir, f"step_{state.step:06d}")
        clock.stop()
        if saved != state.step:
            yield _save_checkpoint(state, out_dir, "last")
        yield DoneRecord(
            step=state.step,
            reason=reason,
            best_val_loss=state.best_val_loss,
            best_step=state.best_step,
            seconds=state.seconds,
        )


def is_due(interval: int, step: int) -> bool:
    """Whether something that happens every `interval` steps (0: never) happens after step `step`."""
    return interval > 0 and step % interval == 0


class _StepTimer:
    """Adds up in `state.seconds` the time between `start` and `stop`; calling either twice does no harm."""

    def __init__(self, state: TrainState) -> None:
        self.state = state
        self.running_since: float | None = None
        self.logged_step, self.logged_seconds = state.step, state.seconds

    def start(self) -> None:
        if self.running_since is None:
            self.running_since = time.perf_counter()

    def stop(self) -> None:
        if self.running_since is not None:
            devices.synchronize(self.state.device)
            self.state.seconds += time.perf_counter() - self.running_since
            self.running_since = None

    def steps_per_second(self) -> float:
        """The rate since it was last asked for."""
        steps, seconds = self.state.step - self.logged_step, self.state.seconds - self.logged_seconds
        self.logged_step, self.logged_seconds = self.state.step, self.state.seconds
        return steps / seconds if seconds else 0.0


def stop_reason(state: TrainState, seconds: float = 0.0) -> str:
    """Why the run is at its end after `seconds` of this call, or an empty text."""
    config, best = state.config, state.best_val_loss
    if state.step >= config.max_iters:
        return "max_iters"
    if config.target_loss and best is not None and best <= config.target_loss:
        return "target_loss"
    if config.patience and state.evals_since_best >= config.patience:
        return "patience"
    return "max_seconds" if config.max_seconds and seconds >= config.max_seconds else ""


def _is_eval_due(state: TrainState, reason: str) -> bool:
    """At each interval and at the end of a budget; not when somebody waits for the program to stop."""
    new_steps = state.step > state.evaluated
    return new_steps and reason != "interrupted" and (bool(reason) or is_due(state.config.eval_interval, state.step))


def _record_eval(state: TrainState, val_loss: float) -> EvalRecord:
    """Note the result of an evaluation in the state."""
    require_finite(state, torch.tensor(val_loss))
    is_best = state.best_val_loss is None or val_loss < state.best_val_loss
    if is_best:
        state.best_val_loss, state.best_step = val_loss, state.step
    state.evals_since_best = 0 if is_best else state.evals_since_best + 1
    state.evaluated = state.step
    assert state.best_val_loss is not None
    return EvalRecord(
        step=state.step,
        train_loss=state.since_eval.pop(),
        val_loss=val_loss,
        best_val_loss=state.best_val_loss,
        is_best=is_best,
        seconds=state.seconds,
    )


def _start_record(state: TrainState, out_dir: Path, train_tokens: int) -> StartRecord:
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
        ranks=distributed.world_size(),
        dropout=bool(config.dropout or config.ngram_dropout),
    )


def _step_record(state: TrainState, clock: _StepTimer) -> StepRecord:
    require_finite(state, state.since_log.total)
    config = state.config
    tokens_per_second = clock.steps_per_second() * config.tokens_per_step
    of_each = tokens_per_second / distributed.world_size()
    return StepRecord(
        step=state.step,
        loss=state.since_log.pop(),
        learning_rate=learning_rate(state.step - 1, config),
        grad_norm=state.grad_norm.item() if state.grad_norm.isfinite() else None,
        tokens_per_second=tokens_per_second,
        mfu=mfu(of_each, state.model.flops_per_token(), devices.device_name(state.device), config.dtype),
        seconds=state.seconds,
    )


def _save_checkpoint(state: TrainState, out_dir: Path, name: str) -> CheckpointRecord:
    path = out_dir / f"{name}{SUFFIX}"
    with distributed.main_process_first():
        if distributed.is_main_process():
            save_state(state, path)
    return CheckpointRecord(step=state.step, name=name, path=str(path))
