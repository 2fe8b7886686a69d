"""The weights of the network after a few steps, most of them early ones, kept to see how it learns.

They are files for `load` and `sample`, much smaller than checkpoints: in float16, without the state of the optimizer,
and without the counts of an n-gram expert, which are the same from the first step on. `checkpoint_writer` writes them.
"""

import dataclasses
import math
from pathlib import Path

import torch
from torch import Tensor

from nanogpt_lite.checkpoint import EARLY_WEIGHTS, SUFFIX
from nanogpt_lite.checkpoint.metadata import CheckpointMetadata
from nanogpt_lite.trainer.state import TrainState, make_metadata

FIRST_STEP = 5
KEPT_DTYPE = torch.float16  # half the size, so that twice as many fit


def is_due(state: TrainState) -> bool:
    """Whether the weights after the present step are kept, unless there are as many as the limit allows.

    They are at steps in equal ratios of at least two, so that the one after the last would be at `max_iters`.
    """
    config, step = state.config, state.step
    most = max_files(state) - _is_wanted_at_end(state)  # one more at the end
    if step < FIRST_STEP or most < 1:
        return False
    ratio: float = max(2.0, (config.max_iters / FIRST_STEP) ** (1 / most))
    index = round(math.log(step / FIRST_STEP, ratio))
    return step == round(FIRST_STEP * ratio**index)


def is_due_at_end(state: TrainState) -> bool:
    """Whether the weights are kept when a training has ended by itself, after a step at which they were not due.

    If its checkpoints have an n-gram expert: to compare the network alone with the earlier ones.
    """
    return _is_wanted_at_end(state) and state.step >= FIRST_STEP and not is_due(state)


def has_room(state: TrainState, out_dir: Path) -> bool:
    """Whether the limit allows another file. A run that was made longer may have them of other steps."""
    path = out_dir / f"{file_name(state.step)}{SUFFIX}"
    return len({*out_dir.glob(EARLY_WEIGHTS), path}) <= max_files(state)


def max_files(state: TrainState) -> int:
    """How many files the limit allows."""
    if not state.config.keep_early:
        return 0
    parameters = sum(parameter.numel() for parameter in state.model.parameters())
    return int(state.config.keep_early * 1e6 // (parameters * KEPT_DTYPE.itemsize))


def file_name(step: int) -> str:
    """The name of the weights after a step, as `early_000005`."""
    return f"early_{step:06d}"


def weights(state: TrainState) -> tuple[dict[str, Tensor], CheckpointMetadata]:
    """What the file holds: the parameters in float16, and metadata of a network without an n-gram expert.

    A parameter with a value outside of the range of float16 stays as it is.
    """
    metadata = make_metadata(state)
    config = metadata.config.replace({"ngram_expert": 0, "ngram_expert_weight": 0.0})
    tensors = {f"model.{name}": _as_kept(parameter.detach()) for name, parameter in state.model.named_parameters()}
    return tensors, dataclasses.replace(metadata, config=config)


def _is_wanted_at_end(state: TrainState) -> bool:
    return state.model.expert is not None and max_files(state) > 1


def _as_kept(parameter: Tensor) -> Tensor:
    kept = parameter.to(KEPT_DTYPE)
    return kept if bool(kept.isfinite().all()) else parameter
