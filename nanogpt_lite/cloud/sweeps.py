"""The grid of a sweep: its trials, and the table of their results. `modal_app.py` runs them.

A trial trains one combination of options for the first steps of a whole training; the best one is resumed to its end.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nanogpt_lite.config import presets
from nanogpt_lite.config.options import TrainConfig
from nanogpt_lite.config.schema import Value, parse_values
from nanogpt_lite.errors import UserError

Result = float | str
"""The val loss of a trial in nats per token, or why there is none."""


@dataclass(frozen=True)
class Trial:
    """One combination of options."""

    options: dict[str, Value]  # from the grid
    first_options: dict[str, Value]  # of `train`, for the steps of the trial
    resume_options: dict[str, Value]  # of `train`, from the trial's checkpoint to the end


def make_trials(grid: Mapping[str, str], *, preset: str, steps: int, name: str) -> list[Trial]:
    """Every combination of options of `TrainConfig`; each text of the grid is a value, or several with commas.

    Trial N is the run NAME-N. It trains the first `steps` steps with the learning rate schedule of the whole training,
    so that it can be resumed to the end. `UserError` on an unknown option, a bad value, a value given twice, values
    that contradict each other, or a single combination.
    """
    trials = []
    for number, options in enumerate(_grid_combinations(grid), start=1):
        config = presets.config_with_preset(preset, options)
        if not steps >= 1:
            raise UserError(f"--sweep-iters {steps} trains nothing; give 1 or more")
        if steps > config.max_iters:
            raise UserError(f"--sweep-iters {steps} is more than --max-iters {config.max_iters}; give fewer")
        run = f"{name}-{number}"
        first_options: dict[str, Value] = {
            "preset": preset,
            **options,
            "lr_decay_iters": config.lr_decay_iters or config.max_iters,
            "out_dir": run,
            "max_iters": steps,
            "eval_interval": min(steps, config.eval_interval),
        }
        resume_options: dict[str, Value] = {
            "out_dir": run,
            "max_iters": config.max_iters,
            "eval_interval": config.eval_interval,
        }
        trials.append(Trial(options, first_options, resume_options))
    if len(trials) == 1:
        raise UserError("a sweep needs two combinations or more; give an option several values, with commas in between")
    return trials


def format_table(trials: Sequence[Trial], results: Sequence[Result]) -> str:
    """A Markdown table, the lowest val loss first, with a column for each option that differs between trials."""
    names = [name for name in trials[0].options if len({trial.options[name] for trial in trials}) > 1]
    rows = [["run", *names, "val loss"], ["---"] * (len(names) + 2)]
    for trial, result in sorted(zip(trials, results, strict=True), key=lambda pair: _sort_key(pair[1])):
        cell = f"{result:.4f}" if isinstance(result, float) else " ".join(result.split()).replace("|", "/")
        rows.append([str(trial.resume_options["out_dir"]), *(str(trial.options[name]) for name in names), cell])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def best_trial(trials: Sequence[Trial], results: Sequence[Result]) -> Trial:
    """The trial with the lowest val loss. `UserError` if every trial failed."""
    trial, result = min(zip(trials, results, strict=True), key=lambda pair: _sort_key(pair[1]))
    if isinstance(result, str):
        raise UserError(f"no trial of the sweep has a val loss; try other values (the first trial: {results[0]})")
    return trial


def _grid_combinations(grid: Mapping[str, str]) -> list[dict[str, Value]]:
    values: dict[str, list[Value]] = {}
    for name, text in grid.items():
        values[name] = [parse_values(TrainConfig, {name: part.strip()})[name] for part in text.split(",")]
        if len(set(values[name])) < len(values[name]):
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} {text} has a value twice; give each once")
    return [dict(zip(values, combination, strict=True)) for combination in itertools.product(*values.values())]


def _sort_key(result: Result) -> float:
    return math.inf if isinstance(result, str) else result
