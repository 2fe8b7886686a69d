"""What a training call asks for: its arguments, checked by name, before data, device or checkpoint are looked at.

How a request becomes a run is in `api.setup`.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from nanogpt_lite.config import presets
from nanogpt_lite.config.config_file import read_config_file
from nanogpt_lite.config.keyword_types import TrainOptions
from nanogpt_lite.config.options import TrainConfig
from nanogpt_lite.config.schema import Value, require_known
from nanogpt_lite.data.dataset import Dataset
from nanogpt_lite.runs import run_folder

STEP_OPTIONS = ("max_iters", "lr_decay_iters", "eval_interval")  # which `minutes` decides


@dataclass(frozen=True)
class TrainRequest:
    """The arguments of a call of `training`. `UserError` on an option or a preset that does not exist."""

    explicit: dict[str, Value]  # options given as arguments
    from_file: dict[str, Value]  # options in the file `config`
    preset: str | None
    dataset: Dataset | None  # if the call was given a prepared dataset, and not its name
    overwrite: bool
    verify: bool  # read and check all data, also what has not changed since it was checked

    def __post_init__(self) -> None:
        for values in (self.from_file, self.explicit):
            require_known(values, TrainConfig.names(), "option")
        if self.preset:
            presets.get_preset(self.preset)

    @property
    def options(self) -> dict[str, Value]:
        """The options of the file and of the call; those of the call win, also `minutes` over the steps of the file."""
        from_file = self.from_file
        if self.explicit.get("minutes"):
            from_file = {name: value for name, value in from_file.items() if name not in STEP_OPTIONS}
        return {**from_file, **self.explicit}

    @property
    def init_from(self) -> str:
        """What the run starts from: scratch, resume, or the weights of another network."""
        return str(self.options.get("init_from", "scratch"))

    def options_to_resume(self) -> dict[str, Value]:
        """The options that replace those in the checkpoint: explicit ones, and those of one call in the file."""
        per_call = {name: value for name, value in self.from_file.items() if name not in TrainConfig().stored()}
        return {**per_call, **self.explicit}


def read_request(
    dataset: Dataset | str | Path | None,
    preset: str | None,
    config: str | Path | None,
    overwrite: bool,
    verify: bool,
    options: TrainOptions,
) -> TrainRequest:
    """The request of a call with these arguments. `UserError` if the file `config` cannot be read."""
    explicit = paths_to_str(options)
    if dataset is not None:
        explicit["dataset"] = dataset.source if isinstance(dataset, Dataset) else str(dataset)
    from_file = read_config_file(config) if config else {}
    prepared = dataset if isinstance(dataset, Dataset) else None
    return TrainRequest(explicit, from_file, preset, prepared, overwrite, verify)


def paths_to_str(options: TrainOptions) -> dict[str, Value]:
    """The options with paths as strings, as configs and JSON hold them."""
    # to type checkers the values of a TypedDict are objects
    values = cast("dict[str, Value | Path]", options)
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def request_for_restart(request: TrainRequest, attempt_dir: str) -> TrainRequest:
    """The request after torchrun has restarted the ranks: continue the run in `attempt_dir`, if there is one.

    `attempt_dir` is the run's folder of the attempt before, empty in the first attempt.
    """
    if not attempt_dir:
        return request
    explicit = {**request.explicit, "out_dir": attempt_dir}
    if not run_folder.checkpoints_in(Path(attempt_dir)):
        return dataclasses.replace(request, explicit=explicit)
    return dataclasses.replace(request, explicit={**explicit, "init_from": "resume"}, preset=None)
