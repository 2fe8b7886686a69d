"""Jobs on a shared Volume: their runs equal those of a training without a Volume that nothing interrupts."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from book_data import CACHE_NAME, change_token, replace_unnoticed, set_time
from conftest import wait_for
from shared_volume import TEXT, Machines
from tiny import TINY_GPT

import nanogpt_lite as ng
from nanogpt_lite import files
from nanogpt_lite.checkpoint.checkpoint_file import SUFFIX
from nanogpt_lite.cloud import jobs, sweeps
from nanogpt_lite.cloud.storage import OWNERS_FILE, LocalStorage
from nanogpt_lite.data import sources
from nanogpt_lite.tracking.records import CheckpointRecord

OPTIONS: dict[str, Any] = {**TINY_GPT, "batch_size": 2, "eval_interval": 4, "log_interval": 1}


@pytest.fixture
def machines(tmp_path, monkeypatch):
    return Machines(tmp_path, monkeypatch)


def train_without_volume(machines, **options):
    """The bytes of the last checkpoint of the same training without a Volume."""
    machines.start()
    jobs.prepare_job(LocalStorage(), machines.text)
    run = ng.train("data/text", out_dir="runs/undisturbed", **{**OPTIONS, **options})
    return (run.out_dir / f"last{SUFFIX}").read_bytes()


def train(storage, machines, owner, **options):
    return jobs.train_job(storage, owner=owner, dataset=machines.text, **{**OPTIONS, **options})


def evaluate(storage):
    return jobs.evaluate_job(storage, "text")


def read_last(machines, run="text"):
    return (machines.shared / "runs" / run / f"last{SUFFIX}").read_bytes()


def test_train_job_resumes_bit_exactly_on_another_machine(machines):
    expected = train_without_volume(machines, max_iters=10, lr_decay_iters=10)
    jobs.prepare_job(machines.start(), machines.text)
    train(machines.start(), machines, "first", max_iters=6, lr_decay_iters=10)
    train(machines.start(), machines, "second", max_iters=10)
    assert read_last(machines) == expected
    steps = [record["step"] for record in ng.Run(machines.shared / "runs" / "text").metrics if record["kind"] == "step"]
    assert steps == list(range(1, 11))


def test_sync_checkpoints_pushes_each_checkpoint_and_the_last_state_when_the_run_fails(machines):
    storage = machines.start()
    jobs.prepare_job(storage, machines.text)
    folder = Path("runs/text")
    storage.claim(folder, "me", delete_files=True)
    commits = storage.volume.commits
    records = jobs.sync_checkpoints(ng.training("text", out_dir=folder, max_iters=50, **OPTIONS), storage, folder, "me")
    next(record for record in records if isinstance(record, CheckpointRecord))
    next(records)  # the push of the checkpoint starts when the next record is asked for
    wait_for(lambda: storage.volume.commits > commits)  # the push runs on a thread of its own
    next(record for record in records if isinstance(record, CheckpointRecord) and record.step == 8)
    with pytest.raises(ZeroDivisionError):
        records.throw(ZeroDivisionError)
    assert (machines.shared / "runs/text" / f"last{SUFFIX}").read_bytes() == (folder / f"last{SUFFIX}").read_bytes()
    assert (machines.shared / "runs/text/metrics.jsonl").is_file()


def test_later_call_takes_the_run_over_and_the_earlier_one_stops(machines):
    first = machines.start()
    jobs.prepare_job(first, machines.text)
    folder = Path("runs/text")
    first.claim(folder, "first", delete_files=True)
    records = jobs.sync_checkpoints(
        ng.training("text", out_dir=folder, max_iters=50, **OPTIONS), first, folder, "first"
    )
    next(record for record in records if isinstance(record, CheckpointRecord))
    first_machine = Path.cwd()
    train(machines.start(), machines, "second", max_iters=4)
    last_of_second = read_last(machines)
    os.chdir(first_machine)
    with pytest.raises(ng.UserError, match="another call took over the run text"):
        list(records)
    assert read_last(machines) == last_of_second
    with pytest.raises(ng.UserError, match="another call took over"):
        train(machines.start(), machines, "first", max_iters=50)


def test_retry_of_an_overwriting_call_resumes_instead_of_overwriting_again(machines):
    train(machines.start(), machines, "old", max_iters=8)
    train(machines.start(), machines, "new", max_iters=4, overwrite=True, seed=5)
    first_attempt = read_last(machines)
    second_attempt = train(machines.start(), machines, "new", max_iters=6, overwrite=True, seed=5)
    assert [record["step"] for record in second_attempt.metrics if record["kind"] == "step"] == [1, 2, 3, 4, 5, 6]
    assert [record["step"] for record in second_attempt.metrics if record["kind"] == "start"] == [0, 4]
    assert read_last(machines) != first_attempt


@pytest.mark.parametrize("other", [{"n_embd": 16}, {"preset": "shakespeare_char"}])
def test_resume_with_another_network_shape_is_refused(machines, other):
    train(machines.start(), machines, "first", max_iters=4)
    options = {**({} if "preset" in other else OPTIONS), "max_iters": 8, **other}
    with pytest.raises(ng.UserError, match="another network"):
        jobs.train_job(machines.start(), owner="second", dataset=machines.text, **options)


def test_prepared_text_is_not_read_again(machines, monkeypatch):
    jobs.prepare_job(machines.start(), machines.text)
    monkeypatch.setattr(sources, "find_source", lambda *_, **__: pytest.fail("the text was read again"))
    train(machines.start(), machines, "me", max_iters=2)
    result = jobs.evaluate_job(machines.start(), "text", device="cpu")
    assert result["step"] == 2
    assert result["dataset"] == "data/text"


def test_built_in_text_is_prepared_and_stored_by_the_training(machines):
    run = jobs.train_job(machines.start(), owner="me", dataset="python_docs", **{**OPTIONS, "max_iters": 2})
    assert run.out_dir == Path("runs/python_docs")
    assert (machines.shared / "datasets/python_docs/train.bin").is_file()
    config = json.loads((machines.shared / "runs/python_docs/config.json").read_text())["config"]
    assert config["dataset"] == "python_docs"  # the name that every machine knows, not a folder of this one


def test_init_from_another_run_starts_from_its_weights(machines):
    train(machines.start(), machines, "one", max_iters=4)
    run = train(machines.start(), machines, "two", max_iters=2, out_dir="child", init_from="runs/text")
    assert run.out_dir == Path("runs/child")
    assert run.metrics[-1]["step"] == 2


def test_evaluate_job_finds_data_outside_of_the_volume(machines, tmp_path):
    machines.start()
    data = ng.prepare(machines.text, out_dir=tmp_path / "elsewhere")
    storage = machines.start()
    ng.train(data, **OPTIONS, max_iters=2, out_dir=storage.root / "runs/far")
    storage.volume.commit()
    assert jobs.evaluate_job(storage, "far")["step"] == 2
    shutil.rmtree(data.path)
    with pytest.raises(ng.UserError, match="there is no dataset, file or folder"):
        jobs.evaluate_job(storage, "far")


def test_find_run_lists_the_runs_with_a_checkpoint(machines):
    storage = machines.start()
    with pytest.raises(ng.UserError, match=r"no checkpoint of a run 'x'; train it: modal run modal_app.py::train"):
        jobs.find_run(storage, "x")
    train(storage, machines, "me", max_iters=2)
    with pytest.raises(ng.UserError, match="no checkpoint of a run 'x'; runs with one: text"):
        jobs.find_run(machines.start(), "x")
    assert jobs.find_run(machines.start()).out_dir == Path("runs/text")


def test_prepare_job_reads_an_uploaded_text(machines):
    storage = machines.start()
    (storage.root / "texts").mkdir()
    (storage.root / "texts" / "mine.txt").write_text(TEXT)
    storage.volume.commit()
    jobs.prepare_job(machines.start(), "texts/mine.txt")
    assert (machines.shared / "datasets/mine/train.bin").is_file()


def test_resumed_trial_equals_a_training_without_interruption(machines):
    jobs.prepare_job(machines.start(), machines.text)
    shape = {name: str(value) for name, value in OPTIONS.items() if name not in ("preset", "eval_interval")}
    trials = sweeps.make_trials({**shape, "learning_rate": "1e-3, 5e-3"}, preset="cpu", steps=4, name="s")
    options = {"max_iters": 12, "eval_interval": 4}
    for trial in trials:
        first_options: dict[str, Any] = {**trial.first_options, "lr_decay_iters": 12}
        jobs.train_job(machines.start(), owner=first_options["out_dir"], dataset="text", **first_options)
    resume_options: dict[str, Any] = {**trials[1].resume_options, **options}
    jobs.train_job(machines.start(), owner="rest", **resume_options)
    assert read_last(machines, "s-2") == train_without_volume(machines, learning_rate=5e-3, **options)


def test_run_without_a_last_checkpoint_starts_from_scratch(machines):
    """As after a kill between the push of the first best or numbered checkpoint and that of the first last one."""
    train(machines.start(), machines, "me", max_iters=8, keep_every=2)
    for name in ("last", "best"):
        (machines.shared / "runs" / "text" / f"{name}{SUFFIX}").unlink()
    again = train(machines.start(), machines, "me", max_iters=4)
    assert again.metrics[-1]["step"] == 4
    assert not list((machines.shared / "runs" / "text").glob("step_*"))


@pytest.mark.parametrize("wrong", [{"n_head": 3}, {"block_size": 100_000}, {"dataset": "nix"}, {"min_lr": 9.0}])
def test_call_with_a_user_error_leaves_the_volume_unchanged(machines, wrong):
    train(machines.start(), machines, "good", max_iters=4)
    before = {path: path.read_bytes() for path in machines.shared.rglob("*") if path.is_file()}
    for overwrite in (True, False):
        options = {**OPTIONS, "dataset": machines.text, "out_dir": "text", "max_iters": 8, **wrong}
        with pytest.raises(ng.UserError):
            jobs.train_job(machines.start(), owner="bad", overwrite=overwrite, **options)
    after = {path: path.read_bytes() for path in machines.shared.rglob("*") if path.is_file()}
    assert after == before


def test_overwrite_still_applies_after_a_kill_before_the_claim_is_written(machines, monkeypatch):
    train(machines.start(), machines, "old", max_iters=8)
    storage = machines.start()
    atomic_write = files.atomic_write

    def killed(path):
        if path.name == OWNERS_FILE:
            raise KeyboardInterrupt
        return atomic_write(path)

    with monkeypatch.context() as patch:
        patch.setattr(files, "atomic_write", killed)
        with pytest.raises(KeyboardInterrupt):
            train(storage, machines, "new", max_iters=4, overwrite=True, seed=5)
    storage.volume.commit()  # as Modal does when a container ends
    again = train(machines.start(), machines, "new", max_iters=4, overwrite=True, seed=5)
    assert [record["step"] for record in again.metrics if record["kind"] == "start"] == [0]


def test_run_from_another_runs_weights_and_another_text_resumes(machines):
    train(machines.start(), machines, "one", max_iters=4)
    letters = Path(machines.text).with_name("letters.txt")
    letters.write_text("that is to be\n" * 100)  # fewer characters than the first text has
    call = {**OPTIONS, "owner": "two", "dataset": str(letters), "out_dir": "child", "init_from": "runs/text"}
    del call["n_embd"]  # the preset's differs from the first run's
    jobs.train_job(machines.start(), **call, max_iters=4)
    run = jobs.train_job(machines.start(), **call, max_iters=8)
    assert [record["step"] for record in run.metrics if record["kind"] == "start"] == [0, 4]
    assert (machines.shared / "datasets" / "letters-for-text" / "train.bin").is_file()


def test_checkpoint_does_not_depend_on_where_the_data_was_prepared(machines):
    train(machines.start(), machines, "me", max_iters=4)
    assert read_last(machines) == train_without_volume(machines, max_iters=4)


def test_warm_machine_deletes_local_files_that_are_no_longer_stored(machines):
    train(machines.start(), machines, "old", max_iters=4, keep_every=2)
    warm = machines.start()
    warm_machine = Path.cwd()
    jobs.find_run(warm, "text")
    assert Path(f"runs/text/step_000002{SUFFIX}").is_file()
    train(machines.start(), machines, "new", max_iters=4, overwrite=True)
    os.chdir(warm_machine)
    jobs.find_run(warm, "text")
    assert not Path(f"runs/text/step_000002{SUFFIX}").exists()
    assert not Path("runs/text", OWNERS_FILE).exists()


def test_damage_of_stored_data_is_noticed_by_each_machine_and_checked_data_is_not_read_again(machines):
    storage = machines.start()
    jobs.prepare_job(storage, machines.text)
    train(storage, machines, "first", max_iters=1)
    stored = machines.shared / "datasets/text"
    set_time(stored / "train.bin", stored / "val.bin")
    jobs.evaluate_job(storage, "text")
    assert (Path("data/text") / CACHE_NAME).is_file()
    assert not (stored / CACHE_NAME).exists()
    local = Path("data/text/train.bin")
    replace_unnoticed(local, change_token(local.read_bytes()))
    jobs.evaluate_job(storage, "text")  # no error: this machine has checked its copy
    replace_unnoticed(stored / "train.bin", change_token((stored / "train.bin").read_bytes()))
    for call in (lambda: train(machines.start(), machines, "second", max_iters=1), lambda: evaluate(machines.start())):
        with pytest.raises(ng.UserError, match="are not those of the text"):
            call()
