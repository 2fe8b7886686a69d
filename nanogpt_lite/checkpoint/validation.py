"""What a checkpoint has to hold before anything is made of it: a file may be damaged, or made to do harm.

Whether it is whole, bit for bit, `checkpoint` has seen by then. What becomes of it is the business of `state`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nanogpt_lite.checkpoint.checkpoint_file import Checkpoint
from nanogpt_lite.config.options import NetworkConfig, TrainConfig
from nanogpt_lite.errors import UserError
from nanogpt_lite.model.gpt import GPT

COUNTERS = ("step", "evaluated", "best_step", "evals_since_best")
SCALER_FIELDS = ("scale", "_growth_tracker")  # of torch.amp.GradScaler, that change; the others are always the same
MAX_LOSS = 1e30  # sum of losses, or scale of one, in float32


def validate_metadata(about: Mapping[str, Any]) -> None:
    """`TypeError` unless what a checkpoint says of itself has the form in which `save` writes it."""
    if not all(isinstance(about[key], str) for key in ("device", "dataset_sha256")):
        raise TypeError("its device and its data are no names")
    if type(about["since_log"]) is not list or [len(about[key]) for key in ("since_log", "since_eval")] != [2, 2]:
        raise TypeError("its means are no pairs")
    if unknown := about["config"].keys() - TrainConfig().stored().keys():
        raise TypeError(f"{sorted(unknown)!r:.60} is nothing that a checkpoint remembers")
    if about["scaler"]:  # of float16
        scale, steps = (about["scaler"][name] for name in SCALER_FIELDS)
        if type(scale) is not float or not 0 < scale < MAX_LOSS or type(steps) is not int or not 0 <= steps < 2**31:
            raise TypeError("its loss scaler has no numbers")
    totals, counts = zip(about["since_log"], about["since_eval"], strict=True)
    for count in (*(about[key] for key in (*COUNTERS, "micro_batch", "ranks")), *counts):
        if type(count) is not int or not 0 <= count < 2**63:
            raise TypeError(f"{count!r:.60} is not a number of steps or rows")
    if not about["micro_batch"]:
        raise TypeError("no row would go through the network at a time")
    losses = totals if about["best_val_loss"] is None else (*totals, about["best_val_loss"])
    for loss in losses:
        if type(loss) is not float or not abs(loss) < MAX_LOSS:
            raise TypeError(f"{loss!r:.60} is not a loss")


def validate_weights(config: NetworkConfig, vocab_size: int, saved: Checkpoint) -> None:
    """`UserError` unless a checkpoint has the weights of such a network, each with its name and shape.

    To be asked before that network is made, which a hostile file could describe as endlessly large.
    """
    found = saved.with_prefix("model.")
    if config.n_layer > len(found):
        raise wrong_weights_error(saved)
    try:
        fits = shapes_match(meta_model(config, vocab_size), found)
    except (RuntimeError, OverflowError, TypeError):  # there is no such shape
        fits = False
    if not fits:
        raise wrong_weights_error(saved)


def meta_model(config: NetworkConfig, vocab_size: int) -> GPT:
    """Such a network without numbers, on PyTorch's device "meta", however large."""
    with torch.device("meta"), _SkipNormalInit():
        return GPT(config.subset(NetworkConfig), vocab_size)


class _SkipNormalInit(TorchFunctionMode):
    """Leaves `nn.init.normal_` out: on "meta" it would import PyTorch's compiler, for a second."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return None if func is nn.init.normal_ else func(*args, **(kwargs or {}))


def shapes_match(model: GPT, found: Mapping[str, Tensor]) -> bool:
    """Whether these are the weights of the network: numbers, each with its name and shape."""
    wanted = {name: parameter.shape for name, parameter in model.named_parameters()}
    numbers = all(tensor.is_floating_point() for tensor in found.values())
    return numbers and wanted == {name: tensor.shape for name, tensor in found.items()}


def wrong_weights_error(saved: Checkpoint) -> UserError:
    """The error if they are not."""
    return UserError(
        f"the weights in {saved.path} do not fit its own description of the network; give another file, or train again"
    )
