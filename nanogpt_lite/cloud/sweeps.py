"""A grid of options to try, and the table of what came of it. Running it is left to `modal_app.py`."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nanogpt_lite.config import presets
from nanogpt_lite.config.options import TrainConfig
from nanogpt_lite.config.schema import Value, parse_values
from nanogpt_lite.errors import UserError

Result = float | str
"""The val loss of a trial, or why there is none."""


@dataclass(frozen=True)
class Trial:
    """One combination of options."""

    options: dict[str, Value]  # what the grid gives
    begin: dict[str, Any]  # what to call `train` with for the first steps
    go_on: dict[str, Any]  # and for the rest, from the checkpoint


def make_trials(texts: Mapping[str, str], *, preset: str, steps: int, name: str) -> list[Trial]:
    """Every combination of options of `TrainConfig`; each text is a value, or several with commas between them.

    Trial N is the run NAME-N. It trains `steps` steps of the whole schedule, so that it can go on to its end.
    `UserError` on an unknown option, a bad value, one that stands there twice, values that do not go
    together, or a single combination.
    """
    found = []
    for number, options in enumerate(_grid(texts), start=1):
        whole = TrainConfig.from_dict({**presets.get_preset(preset), **options})
        if not steps >= 1:
            raise UserError(f"a trial of {steps} steps trains nothing; give 1 or more")
        if steps > whole.max_iters:
            raise UserError(f"a trial of {steps} steps is longer than max_iters={whole.max_iters}; give a shorter one")
        run = f"{name}-{number}"
        decay = {"lr_decay_iters": whole.lr_decay_iters or whole.max_iters}
        begin = {"preset": preset, **options, **decay, "out_dir": run, "max_iters": steps}
        go_on = {"out_dir": run, "max_iters": whole.max_iters, "eval_interval": whole.eval_interval}
        found.append(Trial(options, {**begin, "eval_interval": min(steps, whole.eval_interval)}, go_on))
    if len(found) == 1:
        raise UserError("there is nothing to choose from; give an option several values, with commas between them")
    return found


def format_table(tried: Sequence[Trial], results: Sequence[Result]) -> str:
    """A Markdown table, the lowest val loss first, with a column for each option that differs between trials."""
    names = [name for name in tried[0].options if len({trial.options[name] for trial in tried}) > 1]
    lines = [["run", *names, "val loss"], ["---"] * (len(names) + 2)]
    for trial, result in sorted(zip(tried, results, strict=True), key=lambda pair: _rank(pair[1])):
        shown = f"{result:.4f}" if isinstance(result, float) else " ".join(result.split()).replace("|", "/")
        lines.append([trial.go_on["out_dir"], *(str(trial.options[name]) for name in names), shown])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def best_trial(tried: Sequence[Trial], results: Sequence[Result]) -> Trial:
    """The trial with the lowest val loss. `UserError` if there is none."""
    trial, result = min(zip(tried, results, strict=True), key=lambda pair: _rank(pair[1]))
    if isinstance(result, str):
        raise UserError(f"no trial of the sweep came to a loss; try other values (the first trial says: {results[0]})")
    return trial


def _grid(texts: Mapping[str, str]) -> list[dict[str, Value]]:
    values: dict[str, list[Value]] = {}
    for name, text in texts.items():
        values[name] = [parse_values(TrainConfig, {name: part.strip()})[name] for part in text.split(",")]
        if len(set(values[name])) < len(values[name]):
            raise UserError(f"{name}={text} has a value twice; give each once")
    return [dict(zip(values, combination, strict=True)) for combination in itertools.product(*values.values())]


def _rank(result: Result) -> float:
    return math.inf if isinstance(result, str) else result
