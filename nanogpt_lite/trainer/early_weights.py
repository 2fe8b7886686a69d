"""The weights of the network after a few early steps, kept to see how it learns.

They are files for `load` and `sample`, much smaller than checkpoints: without the state of the optimizer, and without
the counts of an n-gram expert, which are the same from the first step on. `checkpoint_writer` writes them.
"""

import dataclasses
import math

from torch import Tensor

from nanogpt_lite.checkpoint.metadata import CheckpointMetadata
from nanogpt_lite.trainer.state import TrainState, make_metadata

FIRST_STEP = 5  # the next ones are 10, 20, 40, and so on


def is_due(state: TrainState) -> bool:
    """Whether the weights after the present step are kept."""
    doublings = math.log2(state.step / FIRST_STEP) if state.step else -1.0
    if not state.config.keep_early or doublings < 0 or not doublings.is_integer():
        return False
    size = sum(parameter.nbytes for parameter in state.model.parameters())
    return (doublings + 1) * size <= state.config.keep_early * 1e6


def file_name(step: int) -> str:
    """The name of the weights after a step: early_000005."""
    return f"early_{step:06d}"


def weights(state: TrainState) -> tuple[dict[str, Tensor], CheckpointMetadata]:
    """What the file holds: the parameters, and metadata of a network without an n-gram expert."""
    metadata = make_metadata(state)
    config = metadata.config.replace({"ngram_expert": 0, "ngram_expert_weight": 0.0})
    tensors: dict[str, Tensor] = {f"model.{name}": parameter for name, parameter in state.model.named_parameters()}
    return tensors, dataclasses.replace(metadata, config=config)
