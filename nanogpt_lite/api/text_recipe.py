"""Completes the config of a new run with what follows from its text and, with `minutes`, from the speed of the machine.

The numbers of a recipe are in `config.recipe`.
"""

import math
from collections.abc import Mapping

from nanogpt_lite.config import recipe
from nanogpt_lite.config.options import TrainConfig
from nanogpt_lite.config.schema import Role, Value
from nanogpt_lite.data.dataset import Dataset
from nanogpt_lite.device.distributed import ProcessGroup
from nanogpt_lite.tracking.console import Console
from nanogpt_lite.trainer import evaluation, step_time

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
    kept = {*given, *(TrainConfig.names_by_role(Role.NETWORK) if keep_network else ())}

    def replace(values: Mapping[str, Value], max_iters: int) -> TrainConfig:
        """The config with `values`, and with the recipe for so many steps (0: for its own number)."""
        fitted = recipe.fit_options(
            preset,
            train_tokens=len(data.train),
            vocab_size=data.tokenizer.vocab_size,
            tokens_per_step=config.tokens_per_step,
            max_iters=max_iters,
        )
        return config.replace({name: value for name, value in {**values, **fitted}.items() if name not in kept})

    fitted = replace({}, int(given.get("max_iters", 0)))
    if config.minutes:
        config.require_minutes_usable(given, group.world_size)
        steps = _steps_in_minutes(fitted, data, console)
        interval = min(fitted.eval_interval, math.ceil(steps / recipe.EVALUATIONS))
        fitted = replace({"max_iters": steps, "eval_interval": interval}, steps)
        fitted = fitted.replace({"minutes": 0.0})  # a repetition by config.json has these steps, and times none
    return fitted


def describe_recipe(config: TrainConfig, data: Dataset) -> str:
    """The options that follow from the text, in one line."""
    unit = "characters" if data.tokenizer.to_json()["type"] == "char" else "tokens"
    options = [
        f"{name} {getattr(config, name):g}"
        for name in ("dropout", "ngram_dropout", "weight_decay")
        if name != "ngram_dropout" or config.ngram > 1
    ]
    every = f"{config.eval_interval} steps" if config.eval_interval > 1 else "step"
    return (
        f"recipe for {len(data.train):,} train {unit}: {config.max_iters} steps, {', '.join(options)}, an evaluation "
        f"every {every}"
    )


def _steps_in_minutes(config: TrainConfig, data: Dataset, console: Console | None) -> int:
    """The number of steps that take `config.minutes` with their evaluations, at least one."""
    if console:
        console.note(f"timing {step_time.TIMED_STEPS} steps …")
    seconds_per_step = step_time.measure_step_seconds(config, data.tokenizer, data.train)
    evaluated = config.eval_tokens if evaluation.is_long(len(data.val), config.eval_tokens) else len(data.val)
    share = EVALUATION_COST * evaluated / (config.eval_interval * config.tokens_per_step)
    return max(1, round(60 * config.minutes / (seconds_per_step * (1 + share))))
