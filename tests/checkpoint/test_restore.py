"""Config, tokenizer and weights from a checkpoint."""

import pytest

from nanogpt_lite.checkpoint.checkpoint_file import read_checkpoint
from nanogpt_lite.checkpoint.restore import read_config


@pytest.fixture
def saved(trained):
    return read_checkpoint(trained.out_dir / "last.safetensors")


def test_overrides_replace_stored_options_but_not_where_the_run_began(saved):
    config = read_config(saved, {"learning_rate": 0.5, "init_from": "resume", "tokenizer": "auto"})
    assert (config.learning_rate, config.init_from, config.tokenizer) == (0.5, "scratch", "char")
