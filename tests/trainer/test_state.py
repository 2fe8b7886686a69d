"""Saving and restoring a state; metadata or weights that are missing or do not fit are an error."""

import dataclasses
import math

import pytest
import torch
from tiny_training import SMALL, TOKENIZER, small_config, train

from nanogpt_lite.checkpoint import checkpoint_file
from nanogpt_lite.checkpoint.checkpoint_file import read_checkpoint
from nanogpt_lite.checkpoint.restore import load_weights, read_config
from nanogpt_lite.config.options import OPTIMIZERS
from nanogpt_lite.device import devices
from nanogpt_lite.errors import ExternalError, UserError
from nanogpt_lite.trainer.state import init_state, restore_state, save_state


def test_restoring_with_another_network_names_the_fields(tmp_path):
    train(tmp_path)
    saved = read_checkpoint(tmp_path / "last.safetensors")
    with pytest.raises(UserError, match=r"n_layer=3 \(the checkpoint has 2\), bias=False \(the checkpoint has True\)"):
        restore_state(saved, {"n_layer": 3, "bias": False, "learning_rate": 1e-4})
    with pytest.raises(UserError, match="tokenizer=byte"):
        restore_state(saved, {"tokenizer": "byte"})
    state = restore_state(saved, {"n_layer": 2, "tokenizer": "auto", "learning_rate": 5e-4, "init_from": "resume"})
    assert state.config.learning_rate == 5e-4
    assert read_config(saved, {}).learning_rate == 1e-3
    assert state.config.init_from == "scratch"


def test_restoring_resolves_auto_values(tmp_path, monkeypatch):
    train(tmp_path, small_config(dtype="bfloat16"))
    saved = read_checkpoint(tmp_path / "last.safetensors")
    config = restore_state(saved, {"dtype": "auto", "threads": 0, "lr_decay_iters": 0, "max_iters": 20}).config
    assert (config.dtype, config.threads, config.lr_decay_iters) == ("bfloat16", 1, 20)
    assert restore_state(saved, {"dtype": "float32", "threads": 2}).config.dtype == "float32"
    # bfloat16 was chosen for another device
    saved = dataclasses.replace(saved, metadata=dataclasses.replace(saved.metadata, device="cuda"))
    assert restore_state(saved, {}).config.dtype == "float32"
    # one thread was chosen for each of two ranks
    saved = dataclasses.replace(saved, metadata=dataclasses.replace(saved.metadata, ranks=2))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert restore_state(saved, {}).config.threads == devices.resolve_threads(0) == 3
    assert restore_state(saved, {"threads": 1}).config.threads == 1


@pytest.mark.parametrize(
    "scaler",
    [
        {"scale": 0.0},
        {"scale": -1.0},
        {"scale": 1e300},
        {"scale": 7},
        {"_growth_tracker": -1},
        {"_growth_tracker": 1.0},
    ],
)
def test_invalid_loss_scaler_state_is_refused(tmp_path, scaler):
    train(tmp_path, small_config(dtype="float16"))
    saved = read_checkpoint(tmp_path / "last.safetensors")
    before = dict(saved.metadata.scaler)
    constants = {"growth_factor": 0.5, "growth_interval": 0}  # of the scaler, which are not restored
    saved = dataclasses.replace(saved, metadata=dataclasses.replace(saved.metadata, scaler={**before, **constants}))
    assert restore_state(saved, {}).scaler.state_dict() == before
    path = tmp_path / "changed.safetensors"
    content = {**saved.metadata.to_json(), "scaler": {**before, **constants, **scaler}}
    checkpoint_file.write_tensors_and_json(path, saved.tensors, content)
    with pytest.raises(UserError, match="its loss scaler has invalid values"):
        restore_state(read_checkpoint(path), {})


def test_weights_of_another_shape_are_refused(tmp_path):
    train(tmp_path)
    other = init_state(small_config(n_embd=32), TOKENIZER).model
    with pytest.raises(UserError, match="do not fit"):
        load_weights(other, read_checkpoint(tmp_path / "last.safetensors"))


@pytest.mark.parametrize("missing", ["tokenizer", "since_eval", "config", "step", "device"])
def test_a_checkpoint_with_missing_metadata_is_refused(tmp_path, missing):
    train(tmp_path)
    saved = read_checkpoint(tmp_path / "last.safetensors")
    path = tmp_path / "incomplete.safetensors"
    content = {key: value for key, value in saved.metadata.to_json().items() if key != missing}
    checkpoint_file.write_tensors_and_json(path, saved.tensors, content)
    with pytest.raises(UserError, match=f"complete training state.*{missing}"):
        restore_state(read_checkpoint(path), {})


def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
    state = init_state(SMALL, TOKENIZER)
    state.since_eval.total.fill_(math.nan)
    with pytest.raises(ExternalError, match="not finite"):
        save_state(state, tmp_path / "last.safetensors")
    assert not list(tmp_path.iterdir())


def test_the_state_of_another_optimizer_is_a_user_error(tmp_path):
    train(tmp_path)
    saved = read_checkpoint(tmp_path / "last.safetensors")
    with pytest.raises(UserError, match="holds the state of another optimizer than muon; leave `optimizer` out"):
        restore_state(saved, {"optimizer": "muon"})


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_resumes_exactly_with_every_optimizer(tmp_path, optimizer):
    config = small_config(optimizer=optimizer, lr_decay_iters=12)
    train(tmp_path / "whole", config)
    train(tmp_path / "parts", dataclasses.replace(config, max_iters=6))
    state = restore_state(read_checkpoint(tmp_path / "parts/last.safetensors"), {"max_iters": 12})
    train(tmp_path / "parts", state.config, state)
    whole, parts = (read_checkpoint(tmp_path / name / "last.safetensors").tensors for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())
    assert any(name.startswith("optimizer.") for name in whole)
