"""Find, read and check a checkpoint of a run, in one call."""

from typing import NamedTuple

from nanogpt_lite.checkpoint import checkpoint_file
from nanogpt_lite.checkpoint.checkpoint_file import Checkpoint
from nanogpt_lite.checkpoint.validation import validate_weights
from nanogpt_lite.config.options import TrainConfig
from nanogpt_lite.runs.run_folder import RunLike, find_checkpoint
from nanogpt_lite.tokenizers.base import Tokenizer
from nanogpt_lite.tokenizers.registry import tokenizer_from_json


class LoadedCheckpoint(NamedTuple):
    """A checkpoint whose weights have the names and shapes that its config describes."""

    checkpoint: Checkpoint
    config: TrainConfig
    tokenizer: Tokenizer


def load_checkpoint(run: RunLike, name: str = "best", *, weights_only: bool = False) -> LoadedCheckpoint:
    """The checkpoint `name` of a run, and the config and the tokenizer in it.

    `weights_only`: skip the state of the optimizer. `UserError` if there is no such checkpoint, or if it is damaged or
    invalid. `OSError` if it may not be read.
    """
    path = find_checkpoint(run, name)
    saved = checkpoint_file.read_checkpoint(path, prefix="model." if weights_only else "")
    config, tokenizer = saved.metadata.config, tokenizer_from_json(saved.metadata.tokenizer)
    validate_weights(config, tokenizer.vocab_size, saved)
    return LoadedCheckpoint(saved, config, tokenizer)
