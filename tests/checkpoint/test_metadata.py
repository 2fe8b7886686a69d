"""Checkpoint metadata: its JSON object, which must not change, and what is refused."""

import dataclasses
from typing import Any

import pytest

import nanogpt_lite as ng
from nanogpt_lite.checkpoint.checkpoint_file import read_checkpoint, read_tensors_and_json, write_tensors_and_json
from nanogpt_lite.checkpoint.metadata import CheckpointMetadata, InvalidMetadataError
from nanogpt_lite.config.options import TrainConfig

METADATA = CheckpointMetadata(
    config=TrainConfig(n_layer=2, position="rotary"),
    device="cuda",
    ranks=2,
    tokenizer={"type": "byte"},
    dataset_sha256="",
    scaler={"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 7},
    micro_batch=4,
    since_log=(2.5, 1),
    since_eval=(10.0, 4),
    best_val_loss=2.25,
    step=12,
    last_eval_step=8,
    best_step=4,
    evals_since_best=1,
)
JSON: dict[str, Any] = {  # as version 0.1 wrote it
    "config": TrainConfig(n_layer=2, position="rotary").stored(),
    "device": "cuda",
    "ranks": 2,
    "tokenizer": {"type": "byte"},
    "dataset_sha256": "",
    "scaler": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 7},
    "micro_batch": 4,
    "since_log": [2.5, 1],
    "since_eval": [10.0, 4],
    "best_val_loss": 2.25,
    "step": 12,
    "evaluated": 8,
    "best_step": 4,
    "evals_since_best": 1,
}


def test_the_json_object_has_the_keys_of_version_0_1():
    assert METADATA.to_json() == JSON
    assert CheckpointMetadata.from_json(JSON) == METADATA


def test_the_metadata_of_a_trained_run_survives_the_round_trip(trained):
    path = trained.out_dir / "last.safetensors"
    _, content = read_tensors_and_json(path)
    assert content.keys() == JSON.keys()
    assert read_checkpoint(path).metadata.to_json() == content


@pytest.mark.parametrize("key", JSON)
def test_a_missing_key_is_an_error_that_names_it(key):
    with pytest.raises(InvalidMetadataError, match=key):
        CheckpointMetadata.from_json({name: value for name, value in JSON.items() if name != key})


@pytest.mark.parametrize(
    "changes",
    [
        {"device": None},
        {"dataset_sha256": 7},
        {"dataset_sha256": "a\nbc"},
        {"dataset_sha256": "A" * 64},
        {"config": []},
        {"config": {"n_layers": 2}},
        {"config": {**JSON["config"], "n_layers": 2}},
        {"config": {**JSON["config"], "n_layer": "2"}},
        {"scaler": {"scale": 65536.0}},
        {"scaler": [1.0]},
        {"scaler": "scale"},
        {"since_log": 2.5},
        {"since_log": "2 "},
        {"since_eval": [10.0]},
        {"since_eval": {"total": 10.0, "count": 4}},
        {"since_eval": [10.0, 4.0]},
        {"since_log": [float("nan"), 1]},
        {"since_log": [1, 1]},
        {"step": -1},
        {"step": True},
        {"step": 2**63},
        {"evaluated": 1.0},
        {"best_step": "4"},
        {"evals_since_best": None},
        {"ranks": []},
        {"micro_batch": 0},
        {"best_val_loss": 1e30},
        {"best_val_loss": 2},
    ],
)
def test_a_wrong_type_or_an_impossible_value_is_an_error(changes):
    with pytest.raises(InvalidMetadataError):
        CheckpointMetadata.from_json({**JSON, **changes})


def test_values_that_training_can_have_are_valid():
    for changes in ({"best_val_loss": None}, {"scaler": {}}, {"step": 0, "last_eval_step": 0}, {"since_log": (0.0, 0)}):
        dataclasses.replace(METADATA, **changes).validate()


def test_a_file_with_invalid_metadata_is_a_user_error(trained):
    path = trained.out_dir / "last.safetensors"
    tensors, content = read_tensors_and_json(path)
    write_tensors_and_json(trained.out_dir / "changed.safetensors", tensors, {**content, "ranks": -1})
    with pytest.raises(ng.UserError, match=r"changed.safetensors does not hold a complete training state \(-1 is not"):
        read_checkpoint(trained.out_dir / "changed.safetensors")


def test_an_option_that_version_0_1_stored_may_not_be_missing():
    config = {name: value for name, value in JSON["config"].items() if name != "dtype"}
    with pytest.raises(InvalidMetadataError, match="no value for the options dtype; use another checkpoint"):
        CheckpointMetadata.from_json({**JSON, "config": config})


def test_an_option_that_is_newer_than_the_file_means_what_its_version_did():
    config = {name: value for name, value in JSON["config"].items() if name != "rope_theta"}
    assert CheckpointMetadata.from_json({**JSON, "config": config}).config.rope_theta == 10 * METADATA.config.block_size
