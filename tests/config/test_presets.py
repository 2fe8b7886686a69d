"""The presets have the published values, and are valid."""

import dataclasses

import pytest

from nanogpt_lite.config import presets
from nanogpt_lite.config.options import (
    TrainConfig,
)
from nanogpt_lite.config.presets import PRESETS
from nanogpt_lite.errors import UserError


@pytest.mark.parametrize(
    ("name", "published"),
    [
        (
            "cpu",  # nanoGPT's README, "I only have a macbook"
            {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "batch_size": 12, "max_iters": 2000}
            | {"dropout": 0.0},
        ),
        (
            "shakespeare_char",  # config/train_shakespeare_char.py, and train.py for what that leaves out
            {"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256, "batch_size": 64, "dropout": 0.2}
            | {"max_iters": 5000, "learning_rate": 1e-3, "min_lr": 1e-4, "warmup_iters": 100, "beta2": 0.99}
            | {"eval_interval": 250, "log_interval": 10, "gradient_accumulation_steps": 1}
            | {"beta1": 0.9, "weight_decay": 0.1, "grad_clip": 1.0, "decay_lr": True, "bias": False},
        ),
        ("tutorial", {"n_layer": 6, "n_embd": 384, "max_iters": 1000, "learning_rate": 1e-3}),
    ],
)
def test_presets_have_the_published_values(name, published):
    values = dataclasses.asdict(TrainConfig.from_dict(presets.get_preset(name)))
    assert {key: values[key] for key in published} == published


def test_presets_are_valid_and_unknown_presets_are_refused():
    for name in PRESETS:
        assert TrainConfig.from_dict(presets.get_preset(name)).eval_iters == 0  # the full val split
    with pytest.raises(UserError, match="unknown preset 'cpuu'; did you mean cpu"):
        presets.get_preset("cpuu")
