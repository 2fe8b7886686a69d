"""From a checkpoint to objects: its config, its tokenizer, and weights that are copied into a model.

The whole state of a training run is restored in `trainer.state`.
"""

from collections.abc import Mapping
from pathlib import Path

import torch

from nanogpt_lite.checkpoint.checkpoint_file import Checkpoint, TensorFile
from nanogpt_lite.checkpoint.validation import shapes_match, wrong_weights_error
from nanogpt_lite.config.options import TrainConfig
from nanogpt_lite.config.schema import Role, Value
from nanogpt_lite.errors import UserError
from nanogpt_lite.model.gpt import GPT
from nanogpt_lite.ngrams.ngram_counts import NgramCounts

AUTOMATIC: dict[str, Value] = {"tokenizer": "auto", "rope_theta": 0.0}
"""Values of options of the network that stand for another value, which a checkpoint stores: that one is meant."""


def read_config(saved: Checkpoint, overrides: Mapping[str, Value]) -> TrainConfig:
    """The config in a checkpoint, with the options in `overrides` replaced.

    `UserError` if an override describes another network than the checkpoint has, or has an invalid value.
    """
    stored = saved.metadata.config
    require_same_network(saved.path, stored.stored(), overrides)
    fixed: dict[str, Value] = {name: getattr(stored, name) for name in ("init_from", *AUTOMATIC)}
    return stored.replace({**overrides, **fixed})  # a resumed run began the same way


def require_same_network(path: Path, stored: Mapping[str, Value], overrides: Mapping[str, Value]) -> None:
    """`UserError` if an option in `overrides` needs another network than the one with the options `stored`.

    `path` is the checkpoint that they are from, for the message.
    """
    differences = [
        f"{name}={overrides[name]} (the checkpoint has {stored[name]})"
        for name in TrainConfig.names_by_role(Role.NETWORK)
        if name in overrides and overrides[name] not in (stored[name], AUTOMATIC.get(name, stored[name]))
    ]
    if differences:
        raise UserError(
            f"{path} holds another network than these options describe: {', '.join(differences)}; "
            "leave them out, or start a new run from scratch with another `out_dir`"
        )


def load_weights(model: GPT, saved: TensorFile) -> None:
    """Copy the `model.*` tensors into a model.

    `UserError` unless they have the names and shapes of its parameters, and its n-gram expert is valid.
    """
    weights = saved.with_prefix("model.")
    if not shapes_match(model, weights):
        raise wrong_weights_error(saved)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
        if model.expert is not None:
            # copied, because the tensors that were read are memory-mapped, and another process may change the file
            counts = NgramCounts(*(weights[f"expert.{name}"].clone() for name in NgramCounts._fields))
            try:
                model.expert.set_counts(counts)
                model.expert.set_weight(weights["expert.weight"].item())
            except ValueError as error:
                raise wrong_weights_error(saved) from error
