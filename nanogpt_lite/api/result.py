"""What a val loss means: in units that do not depend on the tokenizer, and beside what n-gram models reach.

`make_result` is for the end of a training, `compare` also for `api.run_evaluation.evaluate`.
"""

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from nanogpt_lite.api import text_recipe
from nanogpt_lite.checkpoint import SUFFIX, checkpoint_file
from nanogpt_lite.checkpoint.restore import load_weights
from nanogpt_lite.config import recipe
from nanogpt_lite.config.options import TrainConfig
from nanogpt_lite.data.batching import Tokens
from nanogpt_lite.data.dataset import Dataset, val_text_size
from nanogpt_lite.diagnosis.loss_trend import Evaluation
from nanogpt_lite.diagnosis.measures import TextMeasures, measure_text
from nanogpt_lite.diagnosis.ngram_baseline import NgramLosses, baseline_losses
from nanogpt_lite.diagnosis.verdict import give_verdict
from nanogpt_lite.runs.run_folder import Run
from nanogpt_lite.tracking.records import ResultRecord
from nanogpt_lite.trainer import evaluation
from nanogpt_lite.trainer.evaluation import Losses
from nanogpt_lite.trainer.state import TrainState

MIN_MINUTES = 1  # of a longer run that is proposed


@dataclass(frozen=True)
class Comparison:
    """A val loss in several units, and the losses of n-gram models of the same tokens."""

    val_loss: float  # nats per token
    network_loss: float  # of the network alone; without an n-gram expert the same
    measures: TextMeasures
    baselines: NgramLosses

    def verdict(
        self,
        run: Run,
        *,
        config: TrainConfig,
        device: str,
        train_tokens: int,
        val_tokens: int,
        vocab_size: int,
        world_size: int,
    ) -> str:
        """One sentence about a run; empty if its metrics hold no evaluation. `val_tokens`: those of `val_loss`.

        The steps that it should have had are those of the recipe on the processor of this machine.
        """
        evaluations = [record for record in run.metrics if record["kind"] == "eval"]
        curve = [Evaluation.from_record(record) for record in evaluations]
        if not curve:
            return ""
        last_step = curve[-1].step
        steps, most_steps = recipe.steps_for_text(
            device,
            train_tokens=train_tokens,
            vocab_size=vocab_size,
            tokens_per_step=config.tokens_per_step,
            has_fast_bfloat16=text_recipe.has_fast_bfloat16(config, torch.device(device), world_size),
        )
        seconds = run.seconds_until(last_step) * max(1, steps / last_step)  # a longer run than this, and than usual
        return give_verdict(
            self.val_loss,
            curve,
            self.baselines,
            network_loss=self.network_loss,
            vocab_size=vocab_size,
            val_tokens=val_tokens,
            has_recipe_steps=last_step >= steps,
            could_learn_more=last_step < most_steps,
            # `minutes` times the steps of a single process
            more_time=f"`minutes={max(MIN_MINUTES, math.ceil(2 * seconds / 60))}`"
            if world_size == 1
            else f"`max_iters={2 * max(steps, last_step)}`",
        )


def compare(losses: Losses, data: Dataset, train: Tokens, val: Tokens) -> Comparison:
    """What losses mean for the val split of a dataset. `train`, `val`: the tokens of its splits."""
    n_chars, n_bytes = val_text_size(data)
    return Comparison(
        *losses,
        measure_text(losses.loss, n_tokens=len(val), n_chars=n_chars, n_bytes=n_bytes),
        baseline_losses(train, val, data.tokenizer.vocab_size),
    )


def make_result(
    state: TrainState,
    data: Dataset,
    train: Tokens,
    val: Tokens,
    out_dir: Path,
    *,
    in_hurry: bool,
    note: Callable[[str], None],
    stop: Callable[[], bool],
) -> ResultRecord | None:
    """The result of a training that has ended, after at least one evaluation; None if `stop()` became true meanwhile,
    or if memory is too short for it.

    All ranks call it, and get the same. The loss is that of the evaluations in training, also if these covered a part
    of a long val split, if a limit of time is over (`in_hurry`) or the best checkpoint is not there. `note` shows the
    user what takes long.
    """
    losses, max_tokens = _losses_in_training(state, out_dir), state.config.eval_tokens
    best = out_dir / f"best{SUFFIX}"
    has_best = state.best_step == state.step or best.is_file()  # not so if only `last` was copied from another folder
    more_tokens = _tokens_of_result(state, val)
    if not (in_hurry or more_tokens is None) and not any(state.group.all_reduce_max(not has_best)):
        max_tokens = more_tokens
        note(f"evaluating the best checkpoint on {_evaluated(val, max_tokens):,} val tokens …")
        evaluated = _evaluate_best(state, val, best, max_tokens=max_tokens, stop=stop)
        if evaluated is None:
            return None
        losses = evaluated
    content = ""
    if state.group.is_main_process:
        try:
            record = _make_record(state, data, train, val, out_dir, losses, _evaluated(val, max_tokens))
            content = json.dumps(dataclasses.asdict(record))
        except MemoryError:  # the other ranks wait for the broadcast
            note("warning: there is no result, because the n-gram models of the text need more memory than is free")
    content = state.group.broadcast(content)
    return ResultRecord(**json.loads(content)) if content else None


def _tokens_of_result(state: TrainState, val: Tokens) -> int | None:
    """How many tokens the loss of the result covers at most (0: all); None if the evaluations in training covered them.

    As many as training has read, which takes a third of its time; all if training evaluates all of a long split.
    """
    config, max_tokens = state.config, state.config.eval_tokens
    if not (config.eval_iters or evaluation.is_long(len(val), max_tokens)):
        return None
    more_tokens = max(max_tokens, state.step * config.tokens_per_step) if max_tokens else 0
    return None if more_tokens == max_tokens and not config.eval_iters else more_tokens


def _make_record(
    state: TrainState, data: Dataset, train: Tokens, val: Tokens, out_dir: Path, losses: Losses, val_tokens: int
) -> ResultRecord:
    """The result, with losses of `val_tokens` tokens. `MemoryError` if the n-gram models need too much."""
    comparison = compare(losses, data, train, val)
    verdict = comparison.verdict(
        Run(out_dir),
        config=state.config,
        device=state.device.type,
        train_tokens=len(train),
        val_tokens=val_tokens,
        vocab_size=state.tokenizer.vocab_size,
        world_size=state.group.world_size,
    )
    return ResultRecord(
        step=state.step,
        best_step=state.best_step,
        val_loss=losses.loss,
        val_tokens=val_tokens,
        split_tokens=len(val),
        **dataclasses.asdict(comparison.measures),
        **comparison.baselines._asdict(),
        verdict=verdict,
    )


def _evaluated(val: Tokens, max_tokens: int) -> int:
    """About how many tokens are evaluated: `max_tokens` of a long split, else all."""
    return max_tokens if evaluation.is_long(len(val), max_tokens) else len(val)


def _evaluate_best(
    state: TrainState, val: Tokens, best: Path, *, max_tokens: int, stop: Callable[[], bool]
) -> Losses | None:
    """The losses of the best checkpoint on `max_tokens` tokens of a long split. Its weights replace those of `state`.

    None if `stop()` became true meanwhile.
    """
    if state.best_step != state.step:
        load_weights(state.model, checkpoint_file.read_checkpoint(best, prefix="model."))
    windows = evaluation.split_windows(val, state.model, max_tokens=max_tokens)
    return evaluation.mean_losses(state.model, windows, state.device, state.config.dtype, stop=stop, group=state.group)


def _losses_in_training(state: TrainState, out_dir: Path) -> Losses:
    """The losses of the best evaluation in training; that of the network is known to the main process only."""
    assert state.best_val_loss is not None
    network_loss = state.best_val_loss
    if state.group.is_main_process:
        for record in Run(out_dir).metrics:
            if record["kind"] == "eval" and record["step"] == state.best_step:
                network_loss = Evaluation.from_record(record).network_val_loss
    return Losses(state.best_val_loss, network_loss)
