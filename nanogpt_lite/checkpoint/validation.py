"""Validation of the weights in a checkpoint, before a model is made: the file may be damaged or malicious.

Checksums are verified in `checkpoint_file`, and the JSON part is validated in `metadata`. All of it in one call:
`runs.checkpoint_loading.load_checkpoint`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nanogpt_lite.checkpoint.checkpoint_file import TensorFile
from nanogpt_lite.config.options import NetworkConfig
from nanogpt_lite.errors import UserError
from nanogpt_lite.model.gpt import GPT


def validate_weights(config: NetworkConfig, vocab_size: int, saved: TensorFile) -> None:
    """`UserError` unless the `model.*` tensors have the names and shapes of the network that `config` describes.

    Call it before that network is made: a malicious config may describe one that no memory can hold.
    """
    weights = saved.with_prefix("model.")
    if config.n_layer > len(weights):
        raise wrong_weights_error(saved)
    if not shapes_match(meta_model(config, vocab_size), weights):
        raise wrong_weights_error(saved)


def meta_model(config: NetworkConfig, vocab_size: int) -> GPT:
    """The network on PyTorch's device "meta": it has shapes but no data, and takes no memory."""
    with torch.device("meta"), _SkipNormalInit():
        return GPT(config.subset(NetworkConfig), vocab_size)


class _SkipNormalInit(TorchFunctionMode):
    """Skips `nn.init.normal_`, which on "meta" imports PyTorch's compiler and takes a second."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return None if func is nn.init.normal_ else func(*args, **(kwargs or {}))


def shapes_match(model: GPT, weights: Mapping[str, Tensor]) -> bool:
    """Whether `weights` are floating-point tensors with the names and shapes of the model's parameters.

    With an n-gram expert, its weight and its counts as well, which are integers of any number.
    """
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    counts = {}
    if model.expert is not None:
        shapes["expert.weight"] = model.expert.weight.shape
        counts = {f"expert.{name}": tensor for name, tensor in model.expert.ngram_counts._asdict().items()}
    has_counts = all(
        name in weights and (weights[name].dtype, weights[name].dim()) == (tensor.dtype, tensor.dim())
        for name, tensor in counts.items()
    )
    floating = {name: tensor for name, tensor in weights.items() if name not in counts}
    is_floating = all(tensor.is_floating_point() for tensor in floating.values())
    return has_counts and is_floating and shapes == {name: tensor.shape for name, tensor in floating.items()}


def wrong_weights_error(saved: TensorFile) -> UserError:
    """The error for weights that do not match the config."""
    return UserError(
        f"the weights in {saved.path} do not fit the network that its config describes; give another file, or train "
        "again"
    )
