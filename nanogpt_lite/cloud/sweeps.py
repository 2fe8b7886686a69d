"""The grid of a sweep: its trials, how they are run once each, and the table of their results.

A trial trains one combination of options for the first steps of a whole training; the best one is resumed to its end.
What follows from the text is that of the whole training too. How a training is started on Modal is in `modal_app.py`.
Nothing here needs PyTorch, or another package.
"""

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from nanogpt_lite.cloud.client import checks
from nanogpt_lite.cloud.messages import result_or_error
from nanogpt_lite.config import presets, recipe
from nanogpt_lite.config.options import TrainConfig
from nanogpt_lite.config.schema import Role, Value, parse_values
from nanogpt_lite.errors import UserError
from nanogpt_lite.tracking.records import StopReason

SWEEP_ITERS = 200  # steps of a trial, unless the whole training has fewer

Result = float | str
"""The val loss of a trial, or why there is none: in nats per token; per byte, if the tokenizers differ."""

TextSize = Callable[[str, str], tuple[int, int] | None]
"""The number of train tokens and the vocabulary size of a dataset with a tokenizer; None if they are not known."""


@dataclass(frozen=True)
class Trial:
    """One combination of options."""

    options: dict[str, Value]  # from the grid
    first_options: dict[str, Value]  # of `train`, for the steps of the trial
    resume_options: dict[str, Value]  # of `train`, from the trial's checkpoint to the end

    @property
    def run(self) -> str:
        """The name of the run."""
        return str(self.first_options["out_dir"])


def make_trials(
    grid: Mapping[str, str],
    *,
    preset: str = "",
    sweep_iters: int | None = None,
    name: str,
    text_size: TextSize = lambda dataset, tokenizer: None,
) -> list[Trial]:
    """Every combination of options of `TrainConfig`; each text of the grid is a value, or several with commas.

    Trial N is the run NAME-N. It trains the first `sweep_iters` steps, by default `SWEEP_ITERS` or all of a shorter
    training, with the learning rate schedule of the whole training, so that it can be resumed to the end. Without
    `preset`, it is the one that a training of the same text has. If that follows from the text, so do the options of
    each trial, where `text_size` knows the text. `UserError` on an unknown option, a bad value, a value given twice,
    values that contradict each other, a single combination, or `minutes`.
    """
    if "minutes" in grid:
        raise UserError("a sweep takes no `minutes`: each trial has the steps of --sweep-iters; leave `minutes` out")
    trials = [
        _make_trial(options, preset or checks.preset_of_new_run(options), sweep_iters, text_size, f"{name}-{number}")
        for number, options in enumerate(_grid_combinations(grid), start=1)
    ]
    if len(trials) == 1:
        raise UserError("a sweep needs two combinations or more; give an option several values, with commas in between")
    return trials


def _make_trial(
    options: dict[str, Value], preset: str, sweep_iters: int | None, text_size: TextSize, run: str
) -> Trial:
    config = presets.config_with_preset(preset, options)
    fitted = _options_for_text(config, preset, options, text_size)
    config = config.replace(fitted)
    if sweep_iters is not None and sweep_iters < 1:
        raise UserError(f"--sweep-iters {sweep_iters} trains nothing; give 1 or more")
    has_own_steps = "max_iters" in options or preset not in recipe.RECIPES
    if sweep_iters is not None and sweep_iters > config.max_iters and has_own_steps:
        raise UserError(f"--sweep-iters {sweep_iters} is more than --max-iters {config.max_iters}; give fewer")
    steps = min(sweep_iters or SWEEP_ITERS, config.max_iters)
    first_options: dict[str, Value] = {
        "preset": preset,
        **fitted,
        **options,
        "lr_decay_iters": config.lr_decay_iters or config.max_iters,
        "out_dir": run,
        "max_iters": steps,
        "eval_interval": min(steps, config.eval_interval),
    }
    call_options = TrainConfig.names_by_role(Role.CALL)
    resume_options: dict[str, Value] = {
        **{name: value for name, value in options.items() if name in call_options},  # which no run stores
        "out_dir": run,
        "init_from": "resume",
        "max_iters": config.max_iters,
        "eval_interval": config.eval_interval,
    }
    return Trial(options, first_options, resume_options)


def _options_for_text(
    config: TrainConfig, preset: str, given: Mapping[str, Value], text_size: TextSize
) -> dict[str, Value]:
    """The options of the whole training that follow from its text: none of those that are given.

    They are not left to the trial, which has fewer steps and would need less regularisation. The processor of its
    container is not known yet, so on a CPU the steps are those of float32.
    """
    if preset not in recipe.RECIPES:
        return {}
    if config.init_from != "scratch":  # its tokenizer is known in the training
        if "max_iters" not in given:
            raise UserError(
                f"a sweep from the weights of {config.init_from!r} needs a number of steps; give --max-iters, or a "
                "--preset that has one"
            )
        return {}
    size = text_size(config.dataset, config.tokenizer)
    if size is None:
        return {}
    fitted = recipe.fit_options(
        preset,
        train_tokens=size[0],
        vocab_size=size[1],
        tokens_per_step=config.tokens_per_step,
        max_iters=int(given.get("max_iters", 0)),
    )
    return {name: value for name, value in fitted.items() if name not in given}


class FunctionCall(Protocol):
    """The parts of `modal.FunctionCall` that are used here."""

    @property
    def object_id(self) -> str:
        """The id of the call."""

    def get(self) -> Any:
        """Wait for the result of the Function. Any exception that ended it."""


class TextStorage(Protocol):
    """Where a sweep notes what it has started: `storage.Storage`."""

    def read_text(self, path: str) -> str:
        """The text stored by `write_text`; empty if there is none."""

    def write_text(self, path: str, text: str) -> None:
        """Store a text."""


def run_sweep(
    name: str,
    trials: Sequence[Trial],
    storage: TextStorage,
    *,
    start: Callable[..., FunctionCall],
    get: Callable[[str], FunctionCall],
    trained_by: Callable[[str], str],
) -> str:
    """Train all trials at the same time, then the best one to its end, if it is not there; the table of the results.

    `start` starts a training with the options as keywords, `get` returns a call that was started, by its id. Each id is
    stored as soon as the training has started: a second attempt of the same sweep starts none of them again. If it
    does, because the first attempt was ended just between these two, the second training of the run is refused:
    `trained_by` returns the id of the call that trains a run, whose result then counts. `UserError` if every trial
    failed, or the training of the best one to its end.
    """
    path = f"sweeps/{name}.json"
    loss = "best_val_loss_per_byte" if _tokenizers_differ(trials) else "best_val_loss"
    ids: dict[str, str] = json.loads(storage.read_text(path) or "{}")

    def start_once(key: str, options: dict[str, Value]) -> None:
        if key not in ids:
            ids[key] = start(**options).object_id
            storage.write_text(path, json.dumps(ids))

    def wait(key: str, run: str) -> Mapping[str, Any] | str:
        result = _wait(get(ids[key]), loss)
        trainer = trained_by(run)
        return _wait(get(trainer), loss) if isinstance(result, str) and trainer not in ("", ids[key]) else result

    for trial in trials:
        start_once(trial.run, trial.first_options)
    trained = {trial.run: wait(trial.run, trial.run) for trial in trials}
    results = [result if isinstance(result, str) else result[loss] for result in trained.values()]
    table = format_table(trials, results)
    print(table)
    storage.write_text(f"sweeps/{name}.md", table)
    best = best_trial(trials, results)
    if not _can_continue(best, trained[best.run]):
        return table
    start_once("best", best.resume_options)
    result = wait("best", best.run)
    if isinstance(result, str):
        raise UserError(
            f"the best trial could not be trained to its end: {result}; to try again: --out-dir {best.run} "
            "--init-from resume"
        )
    return table


def format_table(trials: Sequence[Trial], results: Sequence[Result]) -> str:
    """A Markdown table, the lowest val loss first, with a column for each option that differs between trials."""
    names = [name for name in trials[0].options if len({trial.options[name] for trial in trials}) > 1]
    loss = "val loss per byte" if _tokenizers_differ(trials) else "val loss"
    rows = [["run", *names, loss], ["---"] * (len(names) + 2)]
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


def _tokenizers_differ(trials: Sequence[Trial]) -> bool:
    """Whether the networks of two trials may have different tokens: their losses per token are not comparable then."""
    return len({(trial.options.get("tokenizer"), trial.options.get("init_from")) for trial in trials}) > 1


def _can_continue(trial: Trial, result: Mapping[str, Any] | str) -> bool:
    """Whether a training that ended with this result has steps left, and no other reason to end than its steps."""
    if isinstance(result, str):
        return False
    ended_for_good = result.get("reason") in (StopReason.PATIENCE, StopReason.TARGET_LOSS)
    return not ended_for_good and result["step"] < trial.resume_options["max_iters"]


def _wait(call: FunctionCall, loss: str) -> Mapping[str, Any] | str:
    """The result of a training, with its best val loss, as the result calls it; or the error that ended it."""
    try:
        result: Mapping[str, Any] = result_or_error(call.get())
        return {**result, loss: float(result[loss])}
    except Exception as error:  # of any kind: a failed trial must not end the sweep
        return f"{type(error).__name__}: {error}"


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
