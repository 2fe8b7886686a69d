"""The eight settings of `any_text.py`, and how many steps of each fit into the time of the default recipe.

A setting has all options of the default but its regularisation and its variation. The grid is the same for all texts:
each combination of one of `REGULARISATION` with one of `VARIATIONS`.

The number of steps does not depend on a clock during the training, so a setting trained again gives the same losses.
The time of its step is measured relative to that of the default, in alternating steps, and rounded to a multiple of
`TIME_RESOLUTION`, so that the noise of the measurement seldom changes the number of steps.
"""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from step_times import step_times, timed_options

import nanogpt_lite as ng
from nanogpt_lite.config import recipe
from nanogpt_lite.config.schema import Value

TIMED_STEPS, WARM_UP = 30, 5
TIME_RESOLUTION = 0.05  # of the default's step

# as for a long and for a short text
REGULARISATION = {
    "light": recipe.fit_regularisation("modern-cpu", recipe.UNSEEN_EPOCHS),
    "strong": recipe.fit_regularisation("modern-cpu", recipe.RECIPES["modern-cpu"].epochs),
}
VARIATIONS = ("all the time", "half the time", "double learning rates", "larger network")
SETTINGS = {
    f"{strength}, {variation}": (strength, variation)
    for strength, variation in itertools.product(REGULARISATION, VARIATIONS)
}
RATES = ("learning_rate", "muon_learning_rate", "min_lr")


def changed_options(name: str, default: Mapping[str, Any]) -> dict[str, Value]:
    """The options of a setting that differ from those of the default recipe, without the number of steps."""
    strength, variation = SETTINGS[name]
    options = dict(REGULARISATION[strength])
    if variation == "double learning rates":
        options |= {rate: 2 * default[rate] for rate in RATES}
    if variation == "larger network":
        options |= {"n_layer": default["n_layer"] + 1, "n_embd": default["n_embd"] + 16 * default["n_head"]}
    return {option: value for option, value in options.items() if value != default[option]}


def length_options(name: str, default: Mapping[str, Any], *, steps: int, step_time: float) -> dict[str, Value]:
    """The number of steps of a setting, and its evaluations: as many as the default has.

    `steps`: of the default; `step_time`: of the setting, relative to the default's.
    """
    share = 0.5 if SETTINGS[name][1] == "half the time" else 1.0
    fitting = max(1, int(share * steps / step_time))
    interval = max(1, round(fitting * default["eval_interval"] / steps))
    return {"max_iters": fitting, "lr_decay_iters": fitting, "eval_interval": interval}


class StepTimer:
    """Measures the step times of settings, once for those whose steps are alike."""

    def __init__(self, data: ng.Dataset, config: Path, folder: Path) -> None:
        self.data = data
        self.config = config  # the config.json of the default
        self.folder = folder  # for the trainings
        self.measured: dict[str, float] = {}

    def relative_time(self, changed: Mapping[str, Value]) -> float:
        """The time of a step with some options changed, relative to the default's, rounded."""
        slower = {option: value for option, value in changed.items() if option not in (*RATES, "weight_decay")}
        if not slower:
            return 1.0
        key = str(slower)
        if key not in self.measured:
            default, setting = self._step_times([{}, slower])
            rounded = TIME_RESOLUTION * max(1, round(setting / default / TIME_RESOLUTION))
            self.measured[key] = round(rounded, 2)
        return self.measured[key]

    def _step_times(self, variants: list[dict[str, Value]]) -> list[float]:
        runs = []
        for number, changed in enumerate(variants):
            options: dict[str, Any] = {**changed, **timed_options(TIMED_STEPS)}
            out_dir = self.folder / f"timed_{number}"
            runs.append(ng.training(self.data, config=self.config, out_dir=str(out_dir), overwrite=True, **options))
        return step_times(runs, steps=TIMED_STEPS, warm_up=WARM_UP)
