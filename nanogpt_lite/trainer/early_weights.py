"""The weights of the network after a few steps, most of them early ones, kept to see how it learns.

They are files for `load` and `sample`, much smaller than checkpoints: without the state of the optimizer, and without
the counts of an n-gram expert, which are the same from the first step on. `checkpoint_writer` writes them.
"""

import dataclasses
import math
from pathlib import Path

from torch import Tensor

from nanogpt_lite.checkpoint import EARLY_WEIGHTS, SUFFIX
from nanogpt_lite.checkpoint.metadata import CheckpointMetadata
from nanogpt_lite.trainer.state import TrainState, make_metadata

FIRST_STEP = 5


def is_due(state: TrainState) -> bool:
    """Whether the weights after the present step are kept, unless there are as many as the limit allows.

    They are at steps in equal ratios of at least two, so that the one after the last would be at `max_iters`.
    """
    config, step = state.config, state.step
    if step < FIRST_STEP or not (most := max_files(state)):
        return False
    ratio: float = max(2.0, (config.max_iters / FIRST_STEP) ** (1 / most))
    index = round(math.log(step / FIRST_STEP, ratio))
    return step == round(FIRST_STEP * ratio**index)


def has_room(state: TrainState, out_dir: Path) -> bool:
    """Whether the limit allows another file. A run that was made longer may have them of other steps."""
    path = out_dir / f"{file_name(state.step)}{SUFFIX}"
    return len({*out_dir.glob(EARLY_WEIGHTS), path}) <= max_files(state)


def max_files(state: TrainState) -> int:
    """How many files the limit allows."""
    if not state.config.keep_early:
        return 0
    return int(state.config.keep_early * 1e6 // sum(parameter.nbytes for parameter in state.model.parameters()))


def file_name(step: int) -> str:
    """The name of the weights after a step, as `early_000005`."""
    return f"early_{step:06d}"


def weights(state: TrainState) -> tuple[dict[str, Tensor], CheckpointMetadata]:
    """What the file holds: the parameters, and metadata of a network without an n-gram expert."""
    metadata = make_metadata(state)
    config = metadata.config.replace({"ngram_expert": 0, "ngram_expert_weight": 0.0})
    tensors: dict[str, Tensor] = {f"model.{name}": parameter for name, parameter in state.model.named_parameters()}
    return tensors, dataclasses.replace(metadata, config=config)
