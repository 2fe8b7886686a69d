"""A run between two steps, and its form as a checkpoint: everything that going on exactly needs.

How a state changes is the business of `trainer`.
"""

from collections.abc import Mapping

import torch

from nanogpt_lite.checkpoint.checkpoint_file import Checkpoint
from nanogpt_lite.checkpoint.validation import (
    shapes_match,
    validate_metadata,
    wrong_weights_error,
)
from nanogpt_lite.config.options import SHAPE_FIELDS, TrainConfig
from nanogpt_lite.config.schema import Value
from nanogpt_lite.errors import UserError
from nanogpt_lite.model.gpt import GPT
from nanogpt_lite.tokenizers.base import Tokenizer
from nanogpt_lite.tokenizers.registry import tokenizer_from_json


def read_config(saved: Checkpoint, given: Mapping[str, Value]) -> TrainConfig:
    """The config in a checkpoint with the options in `given`. `UserError` if they ask for another network."""
    require_same_network(saved, given)
    stored = saved.metadata["config"]
    kept = {"init_from": stored["init_from"], "tokenizer": stored["tokenizer"]}
    return TrainConfig.from_dict({**stored, **given, **kept})


def read_network(saved: Checkpoint) -> tuple[TrainConfig, Tokenizer]:
    """The config and the tokenizer in a checkpoint. `UserError` if it lacks one of them."""
    try:
        validate_metadata(saved.metadata)
        return read_config(saved, {}), tokenizer_from_json(saved.metadata["tokenizer"])
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{saved.path} does not describe its network ({error}); use another checkpoint") from error


def require_same_network(saved: Checkpoint, given: Mapping[str, Value]) -> None:
    """`UserError` if an option in `given` asks for another network than the checkpoint has."""
    stored = {**TrainConfig().stored(), **saved.metadata["config"]}  # an older checkpoint has fewer options
    other = [
        f"{name}={given[name]} (the checkpoint has {stored[name]})"
        for name in (*SHAPE_FIELDS, "tokenizer")
        if name in given and given[name] not in (stored[name], "auto")
    ]
    if other:
        raise UserError(
            f"{saved.path} holds another network than asked for: {', '.join(other)}; "
            "leave these options out, or begin a run from scratch, in another out_dir"
        )


def load_weights(model: GPT, saved: Checkpoint) -> None:
    """Copy a checkpoint's weights into a model. `UserError` unless each has its name and shape there."""
    found = saved.with_prefix("model.")
    if not shapes_match(model, found):
        raise wrong_weights_error(saved)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(found[name])
