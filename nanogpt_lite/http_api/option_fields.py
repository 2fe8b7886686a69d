"""The options of sampling and training as JSON, for forms: the fields of `config.options` with their help."""

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from nanogpt_lite.config import recipe
from nanogpt_lite.config.options import InspectConfig, LoadConfig, SampleConfig, TrainConfig
from nanogpt_lite.config.presets import PRESETS
from nanogpt_lite.config.schema import Options, Role, type_of
from nanogpt_lite.http_api import completion_request, training_request


def describe_options(load: LoadConfig) -> dict[str, Any]:
    """What can be asked for: of each field its name in a request, the option that it is, help, type and default.

    `load` is how networks are loaded: its values are the defaults of requests for texts.
    """
    of_server = {name: getattr(load, name) for name in LoadConfig.names()}
    training = {name: name for name in training_request.OPTIONS}
    return {
        "sampling": _describe(SampleConfig, {**completion_request.OPTIONS, "stop": "stop"}, of_server),
        "inspection": _describe(InspectConfig, {"top": "top"}, of_server),
        "training": _describe(TrainConfig, training, {}),
        "network": [name for name in training if name in TrainConfig.names_by_role(Role.NETWORK)],
        "presets": PRESETS,
        # options that follow from the text, with these presets
        "fitted": {preset: recipe.fitted_names(preset) for preset in recipe.RECIPES},
    }


def changed_options(kind: type[Options], settings: Options, names: Collection[str]) -> dict[str, Any]:
    """Those of the options `names` of `kind` that have another value in `settings` than their default."""
    fields = [(field.name, field.default) for field in dataclasses.fields(kind) if field.name in names]
    return {name: getattr(settings, name) for name, default in fields if getattr(settings, name) != default}


def _describe(kind: type[Options], names: Mapping[str, str], defaults: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The fields of a request, given by their names and the options that they are; `defaults` instead of their own."""
    options = {field.name: field for field in dataclasses.fields(kind)}
    described = [_describe_field(name, options[option]) for name, option in names.items()]
    return [{**field, "default": defaults.get(field["option"], field["default"])} for field in described]


def _describe_field(name: str, option: "dataclasses.Field[Any]") -> dict[str, Any]:
    metadata = option.metadata
    choices: Iterable[str] = metadata["rule"].choices
    return {
        "name": name,
        "option": option.name,
        "help": metadata["help"],
        "unit": metadata["unit"],
        "type": type_of(option).__name__,
        "default": option.default,
        "choices": list(choices),
    }
