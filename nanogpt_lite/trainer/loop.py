"""The training loop, a generator of records: steps, evaluations, checkpoints, and when to stop.

Between two records the state is consistent, so the caller may stop, generate text or copy the run's folder there (not
its temporary files: a thread may be writing a checkpoint). Every rank runs the whole loop with its share of the rows;
only the main process writes. How records are shown and written is in `tracking`, the folder of a run in `runs`.
"""

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from nanogpt_lite.data import batching
from nanogpt_lite.data.batching import Batch, Tokens
from nanogpt_lite.device import profiling
from nanogpt_lite.device.distributed import Forward
from nanogpt_lite.tracking.records import DoneRecord, EvalRecord, MicroBatchRecord, Record, StopReason
from nanogpt_lite.trainer import early_weights, evaluation, ngram_fitting, training_records
from nanogpt_lite.trainer.checkpoint_writer import CheckpointWriter
from nanogpt_lite.trainer.evaluation import Losses
from nanogpt_lite.trainer.network_setup import prepare_network
from nanogpt_lite.trainer.state import TrainState, require_finite
from nanogpt_lite.trainer.step import train_step
from nanogpt_lite.trainer.training_records import StepTimer


def train_loop(
    state: TrainState,
    train_tokens: Tokens,
    val_tokens: Tokens,
    *,
    out_dir: Path,
    train_batches: Iterator[Batch] | None = None,
    chars_per_token: float | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Generator[Record, None, None]:
    """Train until there is a reason to stop (see `StopReason`), and yield a record of each event when it has happened.

    `train_tokens` and `val_tokens` are the splits, shape (tokens,). `train_batches` replaces the batches of the
    train split: from step `state.step` on, each with `batch_size * gradient_accumulation_steps` rows; then no weight
    of an n-gram expert is chosen, because they may have the tokens that are held out for it. With
    `chars_per_token`, of the val split, evaluations also give the loss per character. `stop()` is called before each
    step and during evaluations. The caller sets the number of threads and the precision (`devices.compute_settings`).

    Checkpoints are written to `out_dir`; a checkpoint is completely on disk when its record comes out. With a GPU a
    thread writes it: then step records of later steps may come before, but no later evaluation, nor the end.

    `UserError` if a split is too short. `ExternalError` if the loss is no longer finite: the last checkpoint is from
    before that. `OSError` if a checkpoint cannot be written.
    """
    config = state.config
    batching.require_length(train_tokens, val_tokens, block_size=config.block_size, sampled_val=config.eval_iters > 0)
    trained_tokens, held_out = ngram_fitting.split_held_out(config, train_tokens)
    fit_weight = partial(ngram_fitting.fit_weight, state, held_out if train_batches is None else [])
    draws_ahead = train_batches is None and computes_asynchronously(state.device)
    train_batches = train_batches or batching.train_batches(
        trained_tokens,
        rows=config.rows_per_step,
        block_size=config.block_size,
        seed=config.seed,
        step=state.step,
        sampling=config.batch_sampling,
    )
    with profiling.trace_steps(config.trace, state.device, state.group) as profiler_step:
        micro_batch = state.micro_batch
        forward = state.model if stop_reason(state) else prepare_network(state)  # a finished run takes no step
        yield training_records.start_record(
            state, out_dir, len(train_tokens), is_finished=stop_reason(state) is not None
        )
        if state.micro_batch < micro_batch:
            yield MicroBatchRecord(step=state.step, rows=state.micro_batch)
        with CheckpointWriter(state, out_dir) as writer:
            evaluate = partial(_evaluate_and_save, state, val_tokens, writer, chars_per_token, stop)
            try:
                batches = _Batches(train_batches, draws_ahead)
                for record in _run_steps(state, forward, batches, evaluate, fit_weight, writer, stop, profiler_step):
                    if isinstance(record, EvalRecord | DoneRecord):
                        yield from writer.records()  # those of earlier steps come first
                    yield record
            except Exception:  # of any kind, and raised again: files that are complete have their records before it
                yield from writer.written_records()
                raise


def stop_reason(state: TrainState, seconds: float = 0.0) -> StopReason | None:
    """Why a run in this state does not train any further, `seconds` after the start of this call; None if it does."""
    config, best = state.config, state.best_val_loss
    if state.step >= config.max_iters:
        return StopReason.MAX_ITERS
    if config.target_loss and best is not None and best <= config.target_loss:
        return StopReason.TARGET_LOSS
    if config.patience and state.evals_since_best >= config.patience:
        return StopReason.PATIENCE
    return StopReason.MAX_SECONDS if config.max_seconds and seconds >= config.max_seconds else None


def is_due(interval: int, step: int) -> bool:
    """Whether something that happens every `interval` steps (0: never) happens after step `step`."""
    return interval > 0 and step % interval == 0


def computes_asynchronously(device: torch.device) -> bool:
    """Whether a step is computed while this process goes on, until it reads a result."""
    return device.type == "cuda"


@dataclass
class _Batches:
    """The batches of the steps. With `draws_ahead`, the next one is read from the data while the GPU computes."""

    batches: Iterator[Batch]
    draws_ahead: bool
    _next: Batch | None = None

    def take(self) -> Batch | None:
        """The batch of the next step; None if there are no more."""
        batch, self._next = self._next or next(self.batches, None), None
        return batch

    def draw_ahead(self) -> None:
        """To be called when a step is queued, before anything waits for it."""
        if self.draws_ahead:
            self._next = next(self.batches, None)


def _run_steps(
    state: TrainState,
    forward: Forward,
    batches: _Batches,
    evaluate: Callable[[], Iterator[Record]],
    fit_weight: Callable[[], None],
    writer: CheckpointWriter,
    stop: Callable[[], bool],
    profiler_step: Callable[[], None],
) -> Iterator[Record]:
    """Steps and evaluations until there is a reason to stop, then the last checkpoint."""
    first_step, micro_batch = state.step, state.micro_batch
    timer, started = StepTimer(state), time.monotonic()
    while True:
        reason = _agree_on_stop_reason(state, stop(), time.monotonic() - started)
        if _is_eval_due(state, reason):
            timer.stop()
            fit_weight()
            yield from evaluate()
            continue  # the evaluation may be a reason to stop, or it was cut short by a request to stop
        if reason:
            break
        timer.start()
        batch = batches.take()
        if batch is None:
            reason = StopReason.BATCHES
            break
        train_step(state, forward, batch)
        batches.draw_ahead()
        profiler_step()
        if writer.has_written():
            timer.stop()
            yield from writer.records(wait=False)
        if state.micro_batch < micro_batch:
            micro_batch = state.micro_batch
            yield MicroBatchRecord(step=state.step, rows=micro_batch)
        yield from _log_and_keep(state, timer, fit_weight, writer)
    timer.stop()
    if state.step == 0 or state.step not in (first_step, state.last_eval_step):  # else `last` is of this step already
        fit_weight()
        yield from writer.save("last")
    has_ended = reason is not StopReason.INTERRUPTED and state.step > first_step
    if has_ended and early_weights.is_due_at_end(state):
        yield from writer.save_early_weights()
    yield training_records.done_record(state, reason)


def _agree_on_stop_reason(state: TrainState, stopped: bool, seconds: float) -> StopReason | None:
    """The same reason on all ranks: a request to stop on any of them, or the longest time."""
    stopped_on_any, max_seconds = state.group.all_reduce_max(stopped, seconds)
    return StopReason.INTERRUPTED if stopped_on_any else stop_reason(state, max_seconds)


def _is_eval_due(state: TrainState, reason: StopReason | None) -> bool:
    """At each interval and at the end, at most once at a step; not after a request to stop, which should be quick."""
    if reason is StopReason.INTERRUPTED or state.step <= state.last_eval_step:
        return False
    return reason is not None or is_due(state.config.eval_interval, state.step)


def _evaluate_and_save(
    state: TrainState,
    val_tokens: Tokens,
    writer: CheckpointWriter,
    chars_per_token: float | None,
    stop: Callable[[], bool],
) -> Iterator[Record]:
    """An evaluation and the checkpoints after it; nothing if `stop()` became true meanwhile."""
    losses = evaluation.val_losses(state, val_tokens, stop=stop)
    if losses is None:
        return
    record = _record_eval(state, losses, chars_per_token)
    yield record
    yield from writer.save(*(("best", "last") if record.is_best else ("last",)))


def _log_and_keep(
    state: TrainState, timer: StepTimer, fit_weight: Callable[[], None], writer: CheckpointWriter
) -> Iterator[Record]:
    """What is due after a step: a record of the last steps, early weights, and a numbered checkpoint."""
    config = state.config
    if is_due(config.log_interval, state.step) or is_due(config.sample_interval, state.step):
        timer.stop()
        yield training_records.step_record(state, timer)
    if early_weights.is_due(state):
        timer.stop()
        yield from writer.save_early_weights()
    if is_due(config.keep_every, state.step):
        timer.stop()
        fit_weight()
        yield from writer.save(f"step_{state.step:06d}")


def _record_eval(state: TrainState, losses: Losses, chars_per_token: float | None) -> EvalRecord:
    """Update the state with the result of an evaluation. `ExternalError` if it is not finite."""
    val_loss = losses.loss
    require_finite(state, torch.tensor(losses.network_loss))  # the mixture may be finite if that is not
    is_best = state.best_val_loss is None or val_loss < state.best_val_loss
    if is_best:
        state.best_val_loss, state.best_step = val_loss, state.step
    state.evals_since_best = 0 if is_best else state.evals_since_best + 1
    state.last_eval_step = state.step
    assert state.best_val_loss is not None
    return EvalRecord(
        step=state.step,
        train_loss=state.since_eval.pop(),
        val_loss=val_loss,
        best_val_loss=state.best_val_loss,
        is_best=is_best,
        seconds=state.seconds,
        val_loss_per_char=None if chars_per_token is None else val_loss / chars_per_token,
        network_val_loss=losses.network_loss if state.config.ngram_expert else None,
    )
