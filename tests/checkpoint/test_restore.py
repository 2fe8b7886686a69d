"""Config, tokenizer and weights from a checkpoint."""

import dataclasses

import pytest

import nanogpt_lite as ng
from nanogpt_lite.checkpoint.checkpoint_file import read_checkpoint
from nanogpt_lite.checkpoint.restore import read_config, read_network


@pytest.fixture
def saved(trained):
    return read_checkpoint(trained.out_dir / "last.safetensors")


def test_overrides_replace_stored_options_but_not_where_the_run_began(saved):
    config = read_config(saved, {"learning_rate": 0.5, "init_from": "resume", "tokenizer": "auto"})
    assert (config.learning_rate, config.init_from, config.tokenizer) == (0.5, "scratch", "char")


def test_a_config_that_does_not_describe_a_network_is_a_user_error(saved):
    config = {name: value for name, value in saved.metadata.config.items() if name != "init_from"}
    incomplete = dataclasses.replace(saved, metadata=dataclasses.replace(saved.metadata, config=config))
    with pytest.raises(ng.UserError, match=r"does not describe its network \('init_from'\)"):
        read_network(incomplete)
