"""From a checkpoint to objects: its config, its tokenizer, and weights that are copied into a model.

The whole state of a training run is restored in `trainer.state`.
"""

from collections.abc import Mapping
from pathlib import Path

import torch

from nanogpt_lite.checkpoint.checkpoint_file import Checkpoint, TensorFile
from nanogpt_lite.checkpoint.validation import shapes_match, wrong_weights_error
from nanogpt_lite.config.options import SHAPE_FIELDS, TrainConfig
from nanogpt_lite.config.schema import Value
from nanogpt_lite.errors import UserError
from nanogpt_lite.model.gpt import GPT
from nanogpt_lite.tokenizers.base import Tokenizer
from nanogpt_lite.tokenizers.registry import tokenizer_from_json


def read_config(saved: Checkpoint, overrides: Mapping[str, Value]) -> TrainConfig:
    """The config in a checkpoint, with the options in `overrides` replaced.

    `UserError` if an override describes another network than the checkpoint has, or has an invalid value.
    """
    stored = saved.metadata.config
    require_same_network(saved.path, stored, overrides)
    fixed = {name: stored[name] for name in ("init_from", "tokenizer")}  # a resumed run began the same way
    return TrainConfig.from_dict({**stored, **overrides, **fixed})


def read_network(saved: Checkpoint) -> tuple[TrainConfig, Tokenizer]:
    """The config and the tokenizer in a checkpoint. `UserError` if one of them is invalid."""
    try:
        return read_config(saved, {}), tokenizer_from_json(saved.metadata.tokenizer)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{saved.path} does not describe its network ({error}); use another checkpoint") from error


def require_same_network(path: Path, stored: Mapping[str, Value], overrides: Mapping[str, Value]) -> None:
    """`UserError` if an option in `overrides` needs another network than the one with the options `stored`.

    `path` is the checkpoint that they are from, for the message.
    """
    stored = {**TrainConfig().stored(), **stored}  # a checkpoint of an older version has fewer options
    differences = [
        f"{name}={overrides[name]} (the checkpoint has {stored[name]})"
        for name in (*SHAPE_FIELDS, "tokenizer")
        if name in overrides and overrides[name] not in (stored[name], "auto")
    ]
    if differences:
        raise UserError(
            f"{path} holds another network than these options describe: {', '.join(differences)}; "
            "leave them out, or start a new run from scratch with another `out_dir`"
        )


def load_weights(model: GPT, saved: TensorFile) -> None:
    """Copy the `model.*` tensors into a model. `UserError` unless they have the names and shapes of its parameters."""
    weights = saved.with_prefix("model.")
    if not shapes_match(model, weights):
        raise wrong_weights_error(saved)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
