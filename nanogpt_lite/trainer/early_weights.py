"""The weights of the network after a few early steps, kept to see how it learns.

They are files for `load` and `sample`, much smaller than checkpoints: without the state of the optimizer, and without
the counts of an n-gram expert, which are the same from the first step on.
"""

import dataclasses
import math
from pathlib import Path

from nanogpt_lite.checkpoint import SUFFIX, checkpoint_file
from nanogpt_lite.tracking.records import CheckpointRecord
from nanogpt_lite.trainer.state import TrainState, make_metadata, require_savable

FIRST_STEP = 5  # the next ones are 10, 20, 40, and so on
BYTES_PER_WEIGHT = 4


def is_due(state: TrainState) -> bool:
    """Whether the weights after the present step are kept."""
    doublings = math.log2(state.step / FIRST_STEP) if state.step else -1.0
    if not state.config.keep_early or doublings < 0 or not doublings.is_integer():
        return False
    size = BYTES_PER_WEIGHT * sum(parameter.numel() for parameter in state.model.parameters())
    return (doublings + 1) * size <= state.config.keep_early * 1e6


def save(state: TrainState, out_dir: Path) -> CheckpointRecord:
    """Write the weights of the present step into the folder of a run.

    `ExternalError`, and no file, if the loss is not finite. `OSError` if the file cannot be written.
    """
    require_savable(state)
    name = f"early_{state.step:06d}"
    path = out_dir / f"{name}{SUFFIX}"
    metadata = make_metadata(state)
    config = metadata.config.replace({"ngram_expert": 0, "ngram_expert_weight": 0.0})
    tensors = {f"model.{name}": parameter for name, parameter in state.model.named_parameters()}
    with state.group.main_process_first():
        if state.group.is_main_process:
            checkpoint_file.write_checkpoint(path, tensors, dataclasses.replace(metadata, config=config))
    return CheckpointRecord(step=state.step, name=name, path=str(path))
