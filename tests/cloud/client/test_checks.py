"""Checks of a call against the runs on the Volume."""

from pathlib import Path

import pytest
from fake_volume import volume_of_version_0_1

import nanogpt_lite as ng
from nanogpt_lite.cloud.client import checks
from nanogpt_lite.cloud.client.dataset_texts import Text
from nanogpt_lite.cloud.client.stored_files import StoredFiles
from nanogpt_lite.config.options import LoadConfig


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """The runs that version 0.1 wrote, on a Volume; the current folder is an empty one."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return StoredFiles(volume_of_version_0_1(tmp_path / "volume"))


def test_prompt_in_a_file_of_this_machine_is_read(stored):
    Path("prompt.txt").write_text("The ship", encoding="utf-8")
    assert checks.check_sampling({"start": "FILE:prompt.txt", "num_samples": 2}).start == "The ship"
    assert checks.check_sampling({"start": "The ship"}).start == "The ship"
    with pytest.raises(ng.UserError, match="cannot be read"):
        checks.check_sampling({"start": "FILE:missing.txt"})
    with pytest.raises(ng.UserError, match="`num_samples=0` is an invalid value"):
        checks.check_sampling({"num_samples": 0})


def test_text_of_this_machine_is_compared_with_that_of_the_run(stored):
    text = stored.run_sha256("plain")
    assert len(text) == 64
    checks.require_text_of_run(stored, "plain", Text("sea", "sea.txt", sha256=text))
    with pytest.raises(ng.UserError, match=r"sea.txt is not the text that the run 'plain' was trained on"):
        checks.require_text_of_run(stored, "plain", Text("sea", "sea.txt", sha256="0" * 64))


def test_existing_run_is_replaced_with_a_warning_that_describes_it_or_refused(stored):
    assert checks.check_out_dir(stored, {}) == checks.check_out_dir(stored, {"out_dir": "new"}) == ()
    assert checks.check_out_dir(stored, {"out_dir": "new", "overwrite": True}) == ()
    with pytest.raises(ng.UserError, match=r"the run 'plain' exists; resume it \(`init_from='resume'`\)"):
        checks.check_out_dir(stored, {"out_dir": "plain"})
    (warning,) = checks.check_out_dir(stored, {"out_dir": "plain", "overwrite": True})
    assert "replacing the run plain (dataset sea, 20 steps)" in warning
    with pytest.raises(ng.UserError, match=r"`overwrite` replaces the run of a name; give the name \(`out_dir`\)"):
        checks.check_out_dir(stored, {"overwrite": True})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "has all of its 20 steps; to make it longer, give a larger `max_iters`"),
        ({"max_iters": 20}, "has all of its 20 steps"),
        ({"max_iters": 19}, "is at step 20, beyond max_iters=19"),
    ],
)
def test_run_without_steps_left_is_not_resumed(stored, given, message):
    config = stored.run_config("plain").replace(given)
    with pytest.raises(ng.UserError, match=message):
        checks.require_steps_left(stored, "plain", config, given)


def test_run_with_steps_left_is_resumed(stored):
    for given in ({"max_iters": 21}, {"max_iters": 40, "batch_size": 2}):
        checks.require_steps_left(stored, "plain", stored.run_config("plain").replace(given), given)


def test_options_of_another_network_are_named_with_both_values(stored):
    automatic = {"n_embd": 8, "max_iters": 40, "learning_rate": 1.0, "rope_theta": 0.0}
    assert stored.run_config("modern").rope_theta == 160
    checks.require_same_network("modern", stored.run_config("modern"), automatic)
    config = stored.run_config("plain")
    with pytest.raises(ng.UserError, match=r"n_layer=2 \(the run has 1\), n_embd=16 \(the run has 8\); leave them out"):
        checks.require_same_network("plain", config, {"n_embd": 16, "n_layer": 2, "n_head": 2})


def test_run_to_load_is_the_named_or_newest_one_with_the_checkpoint(stored):
    assert checks.existing_run(stored, {}, LoadConfig()) == "plain"
    assert checks.existing_run(stored, {"out_dir": "runs/bytes"}, LoadConfig(checkpoint="last")) == "bytes"
    assert checks.existing_run(stored, {}, LoadConfig(checkpoint="weights")) == "plain"
    with pytest.raises(ng.UserError, match="no checkpoint of a run 'typo'"):
        checks.existing_run(stored, {"out_dir": "typo"}, LoadConfig())
    with pytest.raises(
        ng.UserError, match="no checkpoint 'step_000010'; give one of best, last, weights as `checkpoin"
    ):
        checks.existing_run(stored, {}, LoadConfig(checkpoint="step_000010"))


@pytest.mark.parametrize("init_from", ["scratch", "resume", "my-run"])
def test_text_of_the_tutorial_has_its_preset_and_any_other_one_the_library_s_default(stored, init_from):
    assert checks.default_preset("shakespeare_char", init_from) == "tutorial"
    for dataset in ("sea", "python_docs", "texts/shakespeare.txt", "https://example.com/poem.txt"):
        assert checks.default_preset(dataset, init_from) == ""


def test_wandb_needs_a_key_from_any_of_three_places(stored, monkeypatch):
    for name in ("WANDB_API_KEY", "NANOGPT_SECRET"):
        monkeypatch.delenv(name, raising=False)
    checks.require_wandb_key({"wandb_log": False})
    with pytest.raises(ng.UserError, match="`wandb_log` needs a key"):
        checks.require_wandb_key({"wandb_log": True})
    for name in ("WANDB_API_KEY", "NANOGPT_SECRET"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "a-key")
            checks.require_wandb_key({"wandb_log": True})
    Path(".env").write_text("WANDB_API_KEY=a-key\n", encoding="utf-8")
    checks.require_wandb_key({"wandb_log": True})
