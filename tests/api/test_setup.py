"""How a run starts or resumes: its folder, its data, its checkpoint, and what is refused."""

import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch
from tiny import TINY

import nanogpt_lite as ng
from nanogpt_lite.api import setup
from nanogpt_lite.checkpoint.checkpoint_file import read_checkpoint
from nanogpt_lite.config import presets
from nanogpt_lite.device import devices
from nanogpt_lite.runs import run_files, run_folder


def test_a_resumed_run_takes_its_options_from_the_checkpoint(trained):
    ng.train(out_dir=trained.out_dir, init_from="resume", max_iters=30, learning_rate=2e-3, preset="tutorial")
    metadata = read_checkpoint(trained.out_dir / "last.safetensors").metadata
    assert metadata.step == 30
    assert metadata.config.n_embd == 16
    assert metadata.config.learning_rate == 2e-3
    assert metadata.config.lr_decay_iters == 20
    steps = [record["step"] for record in trained.metrics if record["kind"] == "step"]
    assert steps == [10, 20, 30]


def test_a_run_starts_from_the_weights_of_another_run(trained, text_file):
    (text_file.parent / "other.txt").write_text("9 green bottles in a wall; " * 60)
    second = ng.train(
        "other.txt", init_from=str(trained.out_dir), preset="cpu", learning_rate=1e-9, min_lr=0.0, max_iters=1
    )
    metadata = read_checkpoint(second.out_dir / "last.safetensors").metadata
    assert metadata.config.n_embd == 16
    assert metadata.tokenizer == read_checkpoint(trained.out_dir / "best.safetensors").metadata.tokenizer
    assert second.out_dir == Path("runs/other-1")
    assert second.data_folder.name.startswith("other-char-"), "data/other is for the characters of the text"
    for one, other in zip(ng.load(trained)[0].parameters(), ng.load(second)[0].parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)
    ng.train(out_dir=second.out_dir, init_from="resume", max_iters=3)  # the first run is no longer needed for that
    with pytest.raises(ng.UserError, match=r"n_layer=3 \(the checkpoint has 1\)"):
        ng.train("other.txt", init_from=str(trained.out_dir), n_layer=3)
    (text_file.parent / "foreign.txt").write_text("Ω" * 200)
    with pytest.raises(ng.UserError, match=r"'Ω' \(U\+03A9\) at position 0"):
        ng.train("foreign.txt", init_from=str(trained.out_dir))


def test_tokenizer_of_a_training_is_not_that_of_the_next_one(text_file):
    options = {**TINY, "max_iters": 1}
    in_bytes = ng.train("bottles.txt", tokenizer="byte", **options)
    in_characters = ng.train("bottles.txt", **options)
    assert (in_bytes.out_dir, in_characters.out_dir) == (Path("runs/bottles-byte-1"), Path("runs/bottles-1"))
    assert [ng.load(run)[1].to_json()["type"] for run in (in_bytes, in_characters)] == ["byte", "char"]
    ng.train(out_dir=in_bytes.out_dir, init_from="resume", max_iters=2)
    assert (in_bytes.data_folder, in_characters.data_folder) == (Path("data/bottles-byte"), Path("data/bottles"))


def test_run_resumes_after_its_data_of_an_earlier_version_was_prepared_for_characters(text_file):
    """Up to version 0.2, data/NAME held the tokenizer that was given last."""
    ng.prepare("bottles.txt", tokenizer="byte", out_dir="data/bottles")
    run = ng.train("bottles.txt", tokenizer="byte", **{**TINY, "max_iters": 2})
    assert run.data_folder == Path("data/bottles")
    prepared = ng.prepare("bottles.txt")
    assert (prepared.path, prepared.tokenizer.to_json()["type"]) == (Path("data/bottles"), "char")
    ng.train(out_dir=run.out_dir, init_from="resume", max_iters=4)
    assert run.metrics[-1]["step"] == 4
    assert run.data_folder == Path("data/bottles-byte")
    assert ng.prepare("data/bottles").tokenizer.to_json()["type"] == "char"


def test_an_existing_run_is_not_overwritten_without_overwrite(trained):
    before = (trained.out_dir / "last.safetensors").read_bytes()
    with pytest.raises(ng.UserError, match="`init_from='resume'`.*`overwrite=True`"):
        ng.train("bottles.txt", out_dir=trained.out_dir, **TINY)
    assert (trained.out_dir / "last.safetensors").read_bytes() == before
    ng.train("bottles.txt", out_dir=trained.out_dir, overwrite=True, **{**TINY, "max_iters": 5})
    assert trained.metrics[-1]["step"] == 5


def test_a_run_is_trained_by_one_process_at_a_time(trained, text_file):
    options = {**TINY, "max_iters": 40}
    with closing(ng.training(out_dir=trained.out_dir, init_from="resume", max_iters=40)) as records:
        next(records)
        before = {path: path.read_bytes() for path in trained.out_dir.iterdir()}
        command = [sys.executable, "-m", "nanogpt_lite", "train", "--out_dir", str(trained.out_dir)]
        others = [
            subprocess.Popen([*command, *more], stderr=subprocess.PIPE, text=True)
            for more in (["--init_from", "resume"], ["--overwrite", "--dataset", "bottles.txt"])
        ]
        for other in others:
            assert "is in use by another training" in other.communicate()[1]
            assert other.returncode == 2
        assert {path: path.read_bytes() for path in trained.out_dir.iterdir()} == before
        assert list(records)[-1].step == 40
    assert ng.train("bottles.txt", out_dir=trained.out_dir, overwrite=True, **options).metrics[-1]["step"] == 40


def test_max_iters_below_the_step_of_the_run_is_an_error(trained):
    with pytest.raises(ng.UserError, match="is at step 20, beyond max_iters=5"):
        ng.train(out_dir=trained.out_dir, init_from="resume", max_iters=5)


def test_resume_without_its_text_names_the_text(trained, text_file, monkeypatch):
    elsewhere = text_file.parent / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    with pytest.raises(ng.UserError, match="trained on 'bottles.txt', as seen from the folder where it was started"):
        ng.train(out_dir=f"../{trained.out_dir}", init_from="resume", max_iters=30)
    assert ng.train("../bottles.txt", out_dir=f"../{trained.out_dir}", init_from="resume", max_iters=30)


def test_overwrite_deletes_all_files_of_the_old_run(text_file):
    ng.train("bottles.txt", out_dir="runs/a", **{**TINY, "keep_every": 5})
    (run_folder.RUNS_DIR / "a" / "notes.txt").write_text("mine")
    ng.train("bottles.txt", out_dir="runs/a", overwrite=True, **{**TINY, "max_iters": 2})
    left = sorted(path.name for path in (run_folder.RUNS_DIR / "a").iterdir())
    assert left == ["best.safetensors", "config.json", "last.safetensors", "metrics.jsonl", "notes.txt"]


def test_resuming_a_finished_run_does_not_change_its_files(trained):
    kept = {path: path.read_bytes() for path in trained.out_dir.iterdir() if path.name != "metrics.jsonl"}
    ng.train(out_dir=trained.out_dir, init_from="resume", learning_rate=0.5)
    assert {path: path.read_bytes() for path in kept} == kept
    assert [record for record in trained.metrics if record["kind"] == "step"][-1]["step"] == 20


def test_overwrite_keeps_the_old_run_if_the_new_one_cannot_start(trained, text_file):
    (trained.out_dir / "mine.safetensors").write_bytes(b"foreign weights")
    before = (trained.out_dir / "best.safetensors").read_bytes()
    again = {"out_dir": trained.out_dir, "overwrite": True}
    for mistake in ({"dataset": "typo.txt"}, {"device": "cuda:77"}, {"block_size": 10**6}, {"init_from": "nowhere"}):
        with pytest.raises(ng.UserError):
            ng.train(**{**TINY, "dataset": "bottles.txt", **again, **mistake})
    assert (trained.out_dir / "best.safetensors").read_bytes() == before
    ng.train("bottles.txt", **again, **{**TINY, "max_iters": 1})
    assert (trained.out_dir / "mine.safetensors").read_bytes() == b"foreign weights"


def test_unknown_files_in_a_run_folder_are_not_deleted(text_file):
    (text_file.parent / "results").mkdir()
    (text_file.parent / "results/loss.txt").write_text("mine")
    (text_file.parent / "results/.draft.tmp").write_text("mine")
    ng.train("bottles.txt", out_dir="results", **{**TINY, "max_iters": 1})
    assert (text_file.parent / "results/loss.txt").read_text() == "mine"
    assert (text_file.parent / "results/.draft.tmp").read_text() == "mine"


def test_resume_uses_prepared_data_when_the_text_is_deleted(trained, text_file):
    text_file.unlink()
    ng.train(out_dir=trained.out_dir, init_from="resume", max_iters=21)
    assert ng.evaluate(trained)["step"] == 21


def test_runs_get_the_next_free_name_and_the_newest_is_found(trained):
    second = ng.train("bottles.txt", **TINY)
    assert second.out_dir.name == "bottles-2"
    assert run_folder.newest_run() == second
    later = (second.out_dir / "last.safetensors").stat().st_mtime + 10
    os.utime(trained.out_dir / "last.safetensors", (later, later))
    assert run_folder.newest_run() == trained


def test_resume_with_a_changed_text_is_an_error(trained, text_file):
    for text in (text_file.read_text()[:-1], "a text with new characters: é" * 20):
        text_file.write_text(text)
        ng.prepare("bottles.txt")  # until then the prepared data serves
        with pytest.raises(ng.UserError, match="not the text that the run was trained on.*`init_from`"):
            ng.train(out_dir=trained.out_dir, init_from="resume", max_iters=30)
        with pytest.raises(ng.UserError, match="not the text that the run was trained on"):
            ng.evaluate(trained)
    assert "sha256" in json.loads((text_file.parent / "data/bottles/manifest.json").read_text())


def test_resume_warns_when_reproducibility_settings_change(trained, capsys):
    ng.train(out_dir=trained.out_dir, init_from="resume", max_iters=21, threads=2, seed=1)
    assert "warning: threads, seed changed" in capsys.readouterr().err
    ng.train(out_dir=trained.out_dir, init_from="resume", max_iters=22, batch_size=2, gradient_accumulation_steps=4)
    assert "warning: batch_size, gradient_accumulation_steps changed" in capsys.readouterr().err


def test_resume_names_each_option_that_changed_with_its_old_and_new_value(trained, capsys):
    before = read_checkpoint(trained.out_dir / "last.safetensors").metadata.config.learning_rate
    ng.train(out_dir=trained.out_dir, init_from="resume", max_iters=21, learning_rate=5e-4, eval_interval=7)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "changed options" in line]
    described = line.removeprefix("warning: changed options, from step 20 on: ").split(", ")
    assert sorted(described) == ["eval_interval 10 -> 7", f"learning_rate {before} -> 0.0005", "max_iters 20 -> 21"]


def test_resume_with_the_options_that_the_run_has_warns_of_nothing(trained, capsys):
    ng.train(out_dir=trained.out_dir, init_from="resume", **{**TINY, "dataset": "bottles.txt"})
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize(("device", "preset"), [("cpu", "modern-cpu"), ("cuda", "modern"), ("mps", "modern")])
def test_the_preset_fits_the_device(text_file, monkeypatch, device, preset):
    monkeypatch.setattr(devices, "resolve_device", lambda name, group: torch.device(device))
    taken = []
    monkeypatch.setattr(presets, "config_with_preset", lambda name, options: taken.append(name) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ng.train("bottles.txt")
    assert taken == [preset]


def test_a_locked_run_folder_is_refused(trained):
    with run_files.lock_run(trained.out_dir):
        for options in ({"init_from": "resume", "max_iters": 30}, {"overwrite": True}):
            with pytest.raises(ng.UserError, match="is in use by another training; wait"):
                ng.train("bottles.txt", out_dir=trained.out_dir, **options)


@pytest.mark.parametrize("left", [["best"], ["step_000006"], ["best", "step_000006"], ["step_000003", "step_000006"]])
def test_resume_without_last_uses_the_newest_checkpoint(text_file, left):
    """A kill may come between the saves of one evaluation, or before the first one, with --keep_every."""
    options = {**TINY, "eval_interval": 3, "keep_every": 3, "lr_decay_iters": 9}
    whole = ng.train("bottles.txt", out_dir="whole", **{**options, "max_iters": 9})
    ng.train("bottles.txt", out_dir="cut", **{**options, "max_iters": 6})
    for path in Path("cut").glob("*.safetensors"):
        if path.stem not in left:
            path.unlink()
    cut = ng.train(out_dir="cut", init_from="resume", max_iters=9)
    files = [(run.out_dir / "last.safetensors").read_bytes() for run in (whole, cut)]
    assert files[0] == files[1]


def test_a_run_folder_taken_while_data_is_prepared_is_not_overwritten(text_file, monkeypatch):
    """Two runs begin with one name, and one is over before the other one has its data."""
    open_data, begun = setup.open_data, list[bytes]()

    def slow(*arguments, **options):
        if not begun:
            begun.append(b"")
            ng.train("bottles.txt", out_dir="one", **TINY)
            begun.append(Path("one/last.safetensors").read_bytes())
        return open_data(*arguments, **options)

    monkeypatch.setattr(setup, "open_data", slow)
    with pytest.raises(ng.UserError, match="holds a run already"):
        ng.train("bottles.txt", out_dir="one", **TINY)
    assert Path("one/last.safetensors").read_bytes() == begun[1]


def test_cropped_context_leaves_the_logits_of_a_short_text_as_they_were(text_file):
    options = {**TINY, "position": "rotary", "block_size": 32, "max_iters": 10, "optimizer": "adamw"}
    run = ng.train("bottles.txt", **options, out_dir="runs/long")
    unchanged = {"max_iters": 1, "learning_rate": 1e-30, "min_lr": 0.0}  # the step moves no weight
    cropped = ng.train(
        "bottles.txt", init_from="runs/long", out_dir="runs/short", **{**options, "block_size": 8, **unchanged}
    )
    ids = torch.arange(8)[None]
    with torch.no_grad():
        before, after = (ng.load(one, checkpoint="last", device="cpu")[0](ids)[0] for one in (run, cropped))
    torch.testing.assert_close(after, before)
    assert read_checkpoint(cropped.out_dir / "last.safetensors").metadata.config.rope_theta == 320
