"""What a request for a training asks for: a name, a text, and options of the command `train`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nanogpt_lite.config.options import TrainConfig
from nanogpt_lite.config.presets import PRESETS
from nanogpt_lite.config.schema import Value, check_values
from nanogpt_lite.errors import UserError
from nanogpt_lite.files import safe_name
from nanogpt_lite.http_api.fields import FieldError, given_fields

MAX_TEXT_BYTES = 2**25  # of a body with a text
MAX_NAME = 60

_NOT_OFFERED = (  # what has a field of its own, names a file or a device of this machine, or another service
    *("dataset", "out_dir", "init_from", "trace", "tensorboard", "wandb_log", "wandb_project", "wandb_run_name"),
    *("device", "dtype", "threads", "tf32", "max_seconds", "compile", "compile_whole"),
)
OPTIONS = tuple(name for name in TrainConfig.names() if name not in _NOT_OFFERED)
"""The options that a request may have."""

OPTIONS_TO_RESUME = ("max_iters", "max_seconds")
"""Those of a request to continue a run."""


@dataclass(frozen=True)
class TrainingRequest:
    """A request to train a new run."""

    name: str  # of the run; safe as the name of a folder
    dataset: str  # the name of a dataset; empty, if there is a text
    text: str
    preset: str  # empty: one that fits the device
    options: dict[str, Value]


def read_training(body: Mapping[str, Any]) -> TrainingRequest:
    """The request in a body for /api/trainings. `FieldError` if it is not valid."""
    given = given_fields(body, ["name", "dataset", "text", "preset", "options"])
    dataset, text, preset = (_read_text(given, name) for name in ("dataset", "text", "preset"))
    if bool(dataset) == bool(text):
        raise FieldError("text", "give a `text` to train on, or the name of a `dataset`")
    if preset and preset not in PRESETS:
        raise FieldError("preset", f"there is no preset {preset!r}; give one of {', '.join(PRESETS)}, or leave it out")
    return TrainingRequest(_read_name(given), dataset, text, preset, _read_options(given.get("options"), OPTIONS))


def read_resume(body: Mapping[str, Any]) -> dict[str, Value]:
    """The options in a body that continues a run. `FieldError` if it is not valid."""
    return _read_options(given_fields(body, ["options"]).get("options"), OPTIONS_TO_RESUME)


def _read_name(given: Mapping[str, Any]) -> str:
    """The name of a run: letters, digits, '_', '.' and '-'."""
    name = _read_text(given, "name")
    if not name or len(name) > MAX_NAME or safe_name(name, "") != name or not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        raise FieldError(
            "name", f"`name` must have 1 to {MAX_NAME} characters: letters without accents, digits, '_', '.' and '-'"
        )
    return name


def _read_text(given: Mapping[str, Any], name: str) -> str:
    value = given.get(name, "")
    if not isinstance(value, str):
        raise FieldError(name, f"`{name}` must be a text")
    return value


def _read_options(given: object, known: tuple[str, ...]) -> dict[str, Value]:
    """The options of a training, checked one by one. What they are together, the training checks."""
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise FieldError("options", '`options` must be an object, such as {"max_iters": 100}')
    for name, value in given.items():
        if name not in known:
            raise FieldError("options", f"the option {name!r} is not known here; give some of {', '.join(known)}")
        try:
            check_values(TrainConfig, {name: value})
        except UserError as error:
            raise FieldError(name, str(error)) from None
    return given
