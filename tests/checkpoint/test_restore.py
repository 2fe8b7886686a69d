"""Config, tokenizer and weights from a checkpoint."""

import pytest
from tiny import TINY

import nanogpt_lite as ng
from nanogpt_lite.checkpoint.checkpoint_file import read_checkpoint
from nanogpt_lite.checkpoint.restore import read_config


@pytest.fixture
def saved(trained):
    return read_checkpoint(trained.out_dir / "last.safetensors")


def test_overrides_replace_stored_options_but_not_where_the_run_began(saved):
    config = read_config(saved, {"learning_rate": 0.5, "init_from": "resume", "tokenizer": "auto"})
    assert (config.learning_rate, config.init_from, config.tokenizer) == (0.5, "scratch", "char")


def test_automatic_rope_theta_means_the_stored_one(text_file):
    """Also of a context that was cropped, whose own automatic value would be another one."""
    options = {**TINY, "position": "rotary"}
    run = ng.train("bottles.txt", out_dir="runs/long", **{**options, "block_size": 8})
    cropped = ng.train("bottles.txt", out_dir="runs/cropped", init_from=run.out_dir, **{**TINY, "block_size": 4})
    resumed = ng.train(out_dir=cropped.out_dir, init_from="resume", rope_theta=0, max_iters=TINY["max_iters"] + 1)
    saved = read_checkpoint(resumed.out_dir / "last.safetensors")
    assert saved.metadata.config.rope_theta == 80
    with pytest.raises(ng.UserError, match="rope_theta=40"):
        ng.train(out_dir=cropped.out_dir, init_from="resume", rope_theta=40.0)
