"""Completes the config of a new run with what follows from its text, its number format and, with `minutes`, the time.

The numbers of a recipe are in `config.recipe`.
"""

import math
import time
from collections.abc import Mapping

import torch

from nanogpt_lite.config import recipe
from nanogpt_lite.config.options import TrainConfig
from nanogpt_lite.config.schema import Role, Value
from nanogpt_lite.data.dataset import Dataset
from nanogpt_lite.device import devices
from nanogpt_lite.device.distributed import ProcessGroup
from nanogpt_lite.tracking.console import Console
from nanogpt_lite.trainer import evaluation, step_time

TIMING_SHARE = 0.1  # of `minutes`, for timing steps
EVALUATION_COST = 1 / 3  # of a token, relative to its cost in training: a forward pass without a backward pass


def fit_config(
    config: TrainConfig,
    preset: str,
    data: Dataset,
    *,
    given: Mapping[str, Value],
    keep_network: bool,
    group: ProcessGroup,
    console: Console | None,
) -> TrainConfig:
    """The config with the recipe for the text, and with the steps that `config.minutes` are enough for.

    `preset`: its name, or empty. `given`: the explicit options, which stay. `keep_network`: so do all options of the
    network, which is that of the initial weights. `UserError` if `minutes` cannot be used in this call.
    """
    if config.minutes:
        config.require_minutes_usable(given, group.world_size)
    device = devices.resolve_device(config.device, group)
    kept = {*given, *(TrainConfig.names_by_role(Role.NETWORK) if keep_network else ())}

    def replace(values: Mapping[str, Value], max_iters: int) -> TrainConfig:
        """The config with `values`, and with the recipe for so many steps (0: for its own number)."""
        fitted = recipe.fit_options(
            preset,
            train_tokens=len(data.train),
            vocab_size=data.tokenizer.vocab_size,
            tokens_per_step=config.tokens_per_step,
            has_fast_bfloat16=has_fast_bfloat16(config, device, group.world_size),
            max_iters=max_iters,
        )
        return config.replace({name: value for name, value in {**values, **fitted}.items() if name not in kept})

    fitted = replace({}, int(given.get("max_iters", 0)))
    if config.minutes:
        if console:
            console.note(f"timing {step_time.TIMED_STEPS} steps …")
        seconds, started = 60 * config.minutes, time.monotonic()
        one = step_time.measure_step_seconds(fitted, data.tokenizer, data.train, max_seconds=TIMING_SHARE * seconds)
        seconds -= time.monotonic() - started
        steps, interval = steps_in_time(fitted, len(data.val), seconds, one, keep_interval="eval_interval" in given)
        # a preset's warm-up may be longer than all of the steps
        warmup_iters = min(fitted.warmup_iters, steps // 4)
        fitted = replace({"max_iters": steps, "warmup_iters": warmup_iters}, steps)
        fitted = fitted.replace({"eval_interval": interval})
        fitted = fitted.replace({"minutes": 0.0})  # a repetition by config.json has these steps, and times none
    return fitted


def has_fast_bfloat16(config: TrainConfig, device: torch.device, world_size: int) -> bool:
    """Whether the recipe is the one of bfloat16: not with several ranks, because their processors may differ."""
    return world_size == 1 and devices.has_fast_bfloat16(device, config.dtype, width=config.n_embd)


def steps_in_time(
    config: TrainConfig, val_tokens: int, seconds: float, seconds_per_step: float, *, keep_interval: bool
) -> tuple[int, int]:
    """The number of steps that take `seconds` with their evaluations, at least one; the interval of these.

    `val_tokens`: the length of the val split. The interval becomes shorter where there would be fewer than
    `recipe.EVALUATIONS`, unless `keep_interval`; but these, and the evaluation of the whole of a long split at the end,
    take at most half of the time, if one evaluation does not take more.
    """
    steps = seconds / seconds_per_step  # the time, as a number of steps without evaluations
    is_long = evaluation.is_long(val_tokens, config.eval_tokens)
    evaluated = config.eval_tokens if is_long else val_tokens
    if config.eval_iters:
        evaluated = config.eval_iters * config.batch_size * config.block_size
    one = EVALUATION_COST * evaluated / config.tokens_per_step  # the cost of an evaluation, in steps
    if is_long or config.eval_iters:  # see `result.make_result`
        at_the_end = EVALUATION_COST * val_tokens / config.tokens_per_step
        steps -= min(at_the_end, max(one, steps / 4))
    interval = config.eval_interval
    max_iters = round(steps / (1 + one / interval))
    if keep_interval or math.ceil(max_iters / recipe.EVALUATIONS) >= interval:
        return max(1, max_iters), interval
    evaluations = min(recipe.EVALUATIONS, max(1, int(steps / 2 / one))) if one else recipe.EVALUATIONS
    max_iters = max(1, round(steps - evaluations * one))
    return max_iters, math.ceil(max_iters / evaluations)


def describe_recipe(config: TrainConfig, preset: str, data: Dataset) -> str:
    """The options of a preset that follow from the text, in one line."""
    unit = "characters" if data.tokenizer.to_json()["type"] == "char" else "tokens"
    options = [
        f"{name} {getattr(config, name):g}"
        for name in ("ngram", "dropout", "ngram_dropout", "weight_decay", "patience")
        if config.ngram > 1 or name not in ("ngram", "ngram_dropout")
    ]
    every = f"{config.eval_interval} steps" if config.eval_interval > 1 else "step"
    return (
        f"recipe for {len(data.train):,} train {unit}: {config.max_iters} steps, {', '.join(options)}, an evaluation "
        f"every {every}{'' if preset == 'modern-cpu' else '; not measured on a GPU yet'}"
    )
