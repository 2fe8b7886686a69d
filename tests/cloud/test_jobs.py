"""Jobs on a shared Volume: their runs equal those of a training without a Volume that nothing interrupts."""

import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from book_data import CACHE_NAME, change_token, replace_unnoticed, set_time
from conftest import wait_for
from shared_volume import TEXT, Machines
from volume_jobs import OPTIONS, read_last, steps_of, stored_files, train, train_here

import nanogpt_lite as ng
from nanogpt_lite import files
from nanogpt_lite.checkpoint import SUFFIX, checkpoint_file
from nanogpt_lite.cloud import job_data, jobs, sweeps
from nanogpt_lite.cloud.client.volume_names import GPU_TIME_FILE
from nanogpt_lite.cloud.prepare_job import prepare_and_push
from nanogpt_lite.cloud.storage import OWNERS_FILE, LocalStorage
from nanogpt_lite.config.spelling import for_modal
from nanogpt_lite.data import sources
from nanogpt_lite.tracking.records import CheckpointRecord
from nanogpt_lite.trainer import step_time


@pytest.fixture
def machines(tmp_path, monkeypatch):
    return Machines(tmp_path, monkeypatch)


def train_without_volume(machines, **options):
    """The bytes of the last checkpoint of the same training without a Volume."""
    machines.start()
    prepare_and_push(LocalStorage(), machines.text)
    run = ng.train("data/text", out_dir="runs/undisturbed", **{**OPTIONS, **options})
    return (run.out_dir / f"last{SUFFIX}").read_bytes()


def test_run_that_another_machine_resumes_is_bit_exact(machines):
    expected = train_without_volume(machines, max_iters=10, lr_decay_iters=10)
    prepare_and_push(machines.start(), machines.text)
    train(machines, "first", max_iters=6, lr_decay_iters=10)
    train(machines, "second", out_dir="text-1", init_from="resume", max_iters=10)
    assert read_last(machines) == expected
    assert steps_of(machines, "step") == list(range(1, 11))


def test_later_attempt_of_a_call_is_bit_exact_whatever_its_options_say(machines):
    expected = train_without_volume(machines, max_iters=10, lr_decay_iters=10)
    train(machines, "me", max_iters=6, lr_decay_iters=10)
    result = train(machines, "me", max_iters=10, lr_decay_iters=10, out_dir="other", overwrite=True)
    assert result["run"] == "text-1"
    assert read_last(machines) == expected
    assert steps_of(machines, "start") == [0, 6]


def test_each_call_without_out_dir_is_a_new_run(machines):
    names = [train(machines, call_id, max_iters=2)["run"] for call_id in ("a", "b", "c")]
    assert names == ["text-1", "text-2", "text-3"]
    assert {path.name for path in (machines.shared / "runs").iterdir()} == {*names}
    assert steps_of(machines, "start", "text-2") == [0]


def test_result_says_what_the_stored_records_say(machines):
    result = train(machines, "me", max_iters=8)
    records = ng.Run(machines.shared / "runs/text-1").metrics
    best = min(record["val_loss"] for record in records if record["kind"] == "eval")
    per_byte = result.pop("best_val_loss_per_byte")
    assert [record["kind"] for record in records[-2:]] == ["result", "done"]
    expected = {"run": "text-1", "step": 8, "reason": "max_iters", "best_val_loss": best}
    assert result == {**expected, "verdict": for_modal(records[-2]["verdict"])}
    assert result["verdict"]
    assert per_byte == pytest.approx(best), "each character of the text is one byte"


def test_existing_run_is_resumed_or_replaced_only_where_an_option_says_so(machines):
    train(machines, "first", out_dir="mine", max_iters=4)
    before = stored_files(machines)
    with pytest.raises(ng.UserError, match=r"the run 'mine' exists; resume it .*another `out_dir`, or replace it"):
        train(machines, "second", out_dir="mine", max_iters=8)
    assert stored_files(machines) == before
    train(machines, "third", out_dir="runs/mine", init_from="resume", max_iters=8)
    assert steps_of(machines, "start", "mine") == [0, 4]
    train(machines, "fourth", out_dir="mine", overwrite=True, max_iters=4)
    assert steps_of(machines, "start", "mine") == [0]


def test_newest_run_is_resumed_without_out_dir(machines):
    for call_id in ("a", "b"):
        train(machines, call_id, max_iters=4)
    assert train(machines, "c", init_from="resume", max_iters=6)["run"] == "text-2"
    assert steps_of(machines, "start", "text-2") == [0, 4]


def test_resume_names_the_options_that_changed(machines, capfd):
    train(machines, "first", max_iters=4, learning_rate=2e-3)
    capfd.readouterr()
    train(machines, "second", init_from="resume", max_iters=6, learning_rate=5e-4)
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "changed options" in line]
    assert "from step 4 on" in line
    assert "max_iters 4 -> 6" in line
    assert "learning_rate 0.002 -> 0.0005" in line
    assert "batch_size" not in line


def test_run_in_which_another_call_has_not_stored_a_checkpoint_is_not_started_again(machines):
    machines.call("first").reserve_run("mine")
    with pytest.raises(ng.UserError, match="another call has started to train the run 'mine'"):
        train(machines, "second", out_dir="mine", max_iters=2)
    assert train(machines, "third", out_dir="mine", overwrite=True, max_iters=2)["run"] == "mine"


def test_sync_checkpoints_pushes_each_checkpoint_and_the_last_state_when_the_run_fails(machines):
    storage = machines.start()
    prepare_and_push(storage, machines.text)
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
    prepare_and_push(first, machines.text)
    folder = Path("runs/text")
    first.claim(folder, "first", delete_files=True)
    records = jobs.sync_checkpoints(
        ng.training("text", out_dir=folder, max_iters=50, **OPTIONS), first, folder, "first"
    )
    next(record for record in records if isinstance(record, CheckpointRecord))
    first_machine = Path.cwd()
    train(machines, "second", out_dir="text", overwrite=True, max_iters=4)
    last_of_second = read_last(machines, "text")
    os.chdir(first_machine)
    with pytest.raises(ng.UserError, match="another call took over the run text"):
        list(records)
    assert read_last(machines, "text") == last_of_second
    with pytest.raises(ng.UserError, match="another call took over"):
        train(machines, "first", out_dir="text", max_iters=50)


def test_retry_of_an_overwriting_call_resumes_instead_of_overwriting_again(machines):
    train(machines, "old", max_iters=8)
    new = {"out_dir": "text-1", "overwrite": True, "seed": 5}
    train(machines, "new", max_iters=4, **new)
    first_attempt = read_last(machines)
    train(machines, "new", max_iters=6, **new)
    assert steps_of(machines, "step") == [1, 2, 3, 4, 5, 6]
    assert steps_of(machines, "start") == [0, 4]
    assert read_last(machines) != first_attempt


def test_resume_with_another_network_shape_is_refused(machines):
    train(machines, "first", max_iters=4)
    with pytest.raises(ng.UserError, match="another network"):
        train(machines, "second", init_from="resume", max_iters=8, n_embd=16)


@pytest.mark.parametrize(
    ("dataset", "options", "preset"),
    [
        ("text", {}, None),  # the library's default for the device
        ("text", {"preset": "", "init_from": "resume"}, None),
        ("python_docs", {"device": "cpu"}, None),
        ("text", {"preset": "tutorial"}, "tutorial"),
        ("text", {"init_from": "gpt2"}, "finetune"),
        ("", {}, "tutorial"),
        ("shakespeare_char", {"tokenizer": "byte", "device": "cpu"}, "tutorial"),
        ("shakespeare_char", {"preset": "modern"}, "modern"),
        ("shakespeare_char", {"init_from": "gpt2"}, "finetune"),
    ],
)
def test_preset_of_a_new_run(machines, monkeypatch, dataset, options, preset):
    monkeypatch.setattr(job_data, "pull_or_prepare", lambda *_: "the data")
    job = jobs._TrainJob(Path("runs/new"), "me")
    _, for_training = jobs._prepare_new_run(machines.start(), job, dataset, options)
    assert for_training["preset"] == preset


def test_own_text_has_the_recipe_of_ones_own_machine_which_a_retry_keeps(machines, monkeypatch, capfd):
    options = {**OPTIONS, "preset": None, "ngram": 1, "minutes": 1}
    monkeypatch.setattr(step_time, "measure_step_seconds", lambda *_, max_seconds: 10.0)
    expected = train_without_volume(machines, **options)
    train(machines, "me", max_seconds=1e-3, **options)
    monkeypatch.setattr(step_time, "measure_step_seconds", lambda *_, max_seconds: pytest.fail("timed again"))
    train(machines, "me", **options)
    assert len(steps_of(machines, "done")) == 2
    assert read_last(machines) == expected
    stored = checkpoint_file.read_checkpoint(machines.shared / "runs/text-1" / f"last{SUFFIX}").metadata.config
    assert stored.optimizer == "muon", "as in modern-cpu"
    assert 1 < stored.max_iters < 6, "evaluations take a part of the minute"
    assert "no effect" not in capfd.readouterr().err


def test_preset_has_no_effect_on_a_resumed_run(machines, capfd):
    train(machines, "first", max_iters=4)
    capfd.readouterr()
    options: dict[str, Any] = {"init_from": "resume", "max_iters": 6, "preset": "shakespeare_char"}
    jobs.train_job(machines.start(), machines.call("second"), **options)
    assert "a resumed run keeps its own options; --preset has no effect" in capfd.readouterr().err
    config = json.loads((machines.shared / "runs/text-1/config.json").read_text())["config"]
    assert {name: config[name] for name in ("n_embd", "batch_size")} == {"n_embd": 8, "batch_size": 2}


def test_prepared_text_is_not_read_again(machines, monkeypatch):
    prepare_and_push(machines.start(), machines.text)
    monkeypatch.setattr(sources, "find_source", lambda *_, **__: pytest.fail("the text was read again"))
    train(machines, "me", max_iters=2)
    result = jobs.evaluate_job(machines.start(), "text-1", device="cpu")
    assert result["step"] == 2
    assert result["dataset"] == "data/text"


def test_init_from_another_run_starts_from_its_weights(machines):
    train(machines, "one", max_iters=4)
    options = {"max_iters": 1, "learning_rate": 1e-12, "min_lr": 0.0, "seed": 2}  # its one step changes nothing
    child = train(machines, "two", out_dir="child", init_from="runs/text-1", **options)
    parent = jobs.evaluate_job(machines.start(), "text-1", checkpoint="last")
    assert child["best_val_loss"] == pytest.approx(parent["val_loss"], abs=1e-6)


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
    train_here(storage, machines, "me", max_iters=2)
    with pytest.raises(ng.UserError, match="no checkpoint of a run 'x'; runs with one: text-1"):
        jobs.find_run(machines.start(), "x")
    assert jobs.find_run(machines.start()).out_dir == Path("runs/text-1")


def test_prepare_and_push_reads_an_uploaded_text(machines):
    storage = machines.start()
    (storage.root / "texts").mkdir()
    (storage.root / "texts" / "mine.txt").write_text(TEXT)
    storage.volume.commit()
    prepare_and_push(machines.start(), "texts/mine.txt")
    assert (machines.shared / "datasets/mine/train.bin").is_file()


def test_resumed_trial_equals_a_training_without_interruption(machines):
    prepare_and_push(machines.start(), machines.text)
    shape = {name: str(value) for name, value in OPTIONS.items() if name not in ("preset", "eval_interval")}
    trials = sweeps.make_trials({**shape, "learning_rate": "1e-3, 5e-3"}, preset="cpu", sweep_iters=4, name="s")
    options = {"max_iters": 12, "eval_interval": 4}
    for trial in trials:
        first_options: dict[str, Any] = {**trial.first_options, "lr_decay_iters": 12}
        call = machines.call(first_options["out_dir"])
        assert jobs.train_job(machines.start(), call, dataset="text", **first_options)["step"] == 4
    resume_options: dict[str, Any] = {**trials[1].resume_options, **options}
    jobs.train_job(machines.start(), machines.call("rest"), **resume_options)
    assert read_last(machines, "s-2") == train_without_volume(machines, learning_rate=5e-3, **options)


def test_run_without_a_last_checkpoint_starts_from_scratch(machines):
    """As after a kill between the push of the first best or numbered checkpoint and that of the first last one."""
    train(machines, "me", max_iters=8, keep_every=2)
    for name in ("last", "best"):
        (machines.shared / "runs" / "text-1" / f"{name}{SUFFIX}").unlink()
    assert train(machines, "me", max_iters=4)["step"] == 4
    assert steps_of(machines, "start") == [0]
    assert not list((machines.shared / "runs" / "text-1").glob("step_*"))


@pytest.mark.parametrize("wrong", [{"n_head": 3}, {"block_size": 100_000}, {"dataset": "nix"}, {"min_lr": 9.0}])
def test_call_with_a_user_error_leaves_the_volume_unchanged_and_no_name_reserved(machines, wrong):
    train(machines, "good", max_iters=4)
    before = stored_files(machines)
    for way in ({"out_dir": "text-1", "overwrite": True}, {"init_from": "resume"}, {}, {"out_dir": "mine"}):
        with pytest.raises(ng.UserError):
            train(machines, f"bad {way}", max_iters=8, **way, **wrong)
    assert stored_files(machines) == before
    assert train(machines, "next", max_iters=1)["run"] == "text-2"
    assert train(machines, "named", out_dir="mine", max_iters=1)["run"] == "mine"


@pytest.mark.parametrize("way", [{}, {"out_dir": "text-1"}, {"out_dir": "text-1", "overwrite": True}])
@pytest.mark.parametrize("kind", [ng.UserError, ng.ExternalError])
def test_name_of_a_run_that_was_never_stored_is_free_again(machines, monkeypatch, way, kind):
    def fail(*_, **__):
        raise kind("the text cannot be read")

    with monkeypatch.context() as patch:
        patch.setattr(sources, "find_source", fail)
        with pytest.raises(kind, match="cannot be read"):
            train(machines, "first", max_iters=2, **way)
    assert train(machines, "second", out_dir="text-1", max_iters=2)["step"] == 2


def test_overwrite_still_applies_after_a_kill_before_the_claim_is_written(machines, monkeypatch):
    train(machines, "old", max_iters=8)
    storage = machines.start()
    new = {"max_iters": 4, "out_dir": "text-1", "overwrite": True, "seed": 5}
    atomic_write = files.atomic_write

    def killed(path):
        if path.name == OWNERS_FILE:
            raise KeyboardInterrupt
        return atomic_write(path)

    with monkeypatch.context() as patch:
        patch.setattr(files, "atomic_write", killed)
        with pytest.raises(KeyboardInterrupt):
            train_here(storage, machines, "new", **new)
    storage.volume.commit()  # as Modal does when a container ends
    train(machines, "new", **new)
    assert steps_of(machines, "start") == [0]
    assert steps_of(machines, "step") == [1, 2, 3, 4]


def test_run_from_another_runs_weights_and_another_text_resumes(machines):
    train(machines, "one", max_iters=4)
    letters = Path(machines.text).with_name("letters.txt")
    letters.write_text("that is to be\n" * 100)  # fewer characters than the first text has
    options = {**OPTIONS, "dataset": str(letters), "out_dir": "child", "init_from": "runs/text-1"}
    del options["n_embd"]  # the preset's differs from the first run's
    for max_iters in (4, 8):  # two attempts of one call
        jobs.train_job(machines.start(), machines.call("two"), **options, max_iters=max_iters)
    assert steps_of(machines, "start", "child") == [0, 4]
    (stored,) = (machines.shared / "datasets").glob("letters*")
    assert re.fullmatch("letters-char-[0-9a-f]{8}", stored.name)
    assert ng.Run(machines.shared / "runs/child").data_folder.name == stored.name
    resumed: dict[str, Any] = {"out_dir": "child", "init_from": "resume", "max_iters": 10}
    assert jobs.train_job(machines.start(), machines.call("three"), **resumed)["step"] == 10


def test_checkpoint_does_not_depend_on_where_the_data_was_prepared(machines):
    train(machines, "me", max_iters=4)
    assert read_last(machines) == train_without_volume(machines, max_iters=4)


def test_warm_machine_deletes_local_files_that_are_no_longer_stored(machines):
    train(machines, "old", max_iters=4, keep_every=2)
    warm = machines.start()
    warm_machine = Path.cwd()
    jobs.find_run(warm, "text-1")
    assert Path(f"runs/text-1/step_000002{SUFFIX}").is_file()
    train(machines, "new", out_dir="text-1", max_iters=4, overwrite=True)
    os.chdir(warm_machine)
    jobs.find_run(warm, "text-1")
    assert not Path(f"runs/text-1/step_000002{SUFFIX}").exists()
    assert not Path("runs/text-1", OWNERS_FILE).exists()


def test_damage_of_stored_data_is_noticed_by_each_machine_and_checked_data_is_not_read_again(machines):
    storage = machines.start()
    prepare_and_push(storage, machines.text)
    train_here(storage, machines, "first", max_iters=1)
    stored = machines.shared / "datasets/text"
    set_time(stored / "train.bin", stored / "val.bin")
    jobs.evaluate_job(storage, "text-1")
    assert (Path("data/text") / CACHE_NAME).is_file()
    assert not (stored / CACHE_NAME).exists()
    local = Path("data/text/train.bin")
    replace_unnoticed(local, change_token(local.read_bytes()))
    jobs.evaluate_job(storage, "text-1")  # no error: this machine has checked its copy
    replace_unnoticed(stored / "train.bin", change_token((stored / "train.bin").read_bytes()))
    with pytest.raises(ng.UserError, match="are not those of the text"):
        train(machines, "second", max_iters=1)
    with pytest.raises(ng.UserError, match="are not those of the text"):
        jobs.evaluate_job(machines.start(), "text-1")


def test_time_limit_holds_over_all_attempts_of_a_call(machines, capsys):
    """As after two attempts that were preempted: the third has only the time to save, and says how to go on."""
    train(machines, "me", max_iters=4)
    machines.call("me").note_time(7200.0 - 20, 2)
    result = train(machines, "me", max_iters=10**9, time_limit=7200)
    assert (result["run"], result["reason"]) == ("text-1", "max_seconds")
    assert result["step"] == steps_of(machines, "done")[-1] < 10**9
    assert "modal run modal_app.py::train --out-dir text-1 --init-from resume" in capsys.readouterr().out
    assert machines.call("me").used_time()[1] == 3


def test_attempt_without_any_time_left_trains_nothing(machines):
    """As after an attempt that hung until Modal ended it."""
    train(machines, "me", max_iters=4)
    before = stored_files(machines)
    machines.call("me").note_time(7500.0, 2)
    with pytest.raises(ng.UserError, match="time limit of the call is used up, by 2 attempts; the run 'text-1'"):
        train(machines, "me", max_iters=10**9, time_limit=7200)
    assert stored_files(machines) == before


def test_later_attempt_of_a_call_does_not_replace_the_run_of_another_call(machines):
    """The first call is ended before it has begun to replace the run, which another call replaces meanwhile."""
    train(machines, "old", max_iters=2, out_dir="run")
    first = machines.call("first")
    jobs._resolve_run(machines.start(), first, "text", {"out_dir": "run"}, overwrite=True)
    train(machines, "second", max_iters=4, out_dir="run", overwrite=True)
    before = stored_files(machines)
    with pytest.raises(ng.UserError, match="another call took over the run run, or it was deleted"):
        train(machines, "first", max_iters=6, out_dir="run", overwrite=True)
    assert stored_files(machines) == before


def test_later_attempt_does_not_begin_a_deleted_run_again(machines):
    train(machines, "me", max_iters=2)
    shutil.rmtree(machines.shared / "runs/text-1")
    machines.dictionary.pop("runs/text-1")  # as `::delete` does
    with pytest.raises(ng.UserError, match="took over the run text-1, or it was deleted"):
        train(machines, "me", max_iters=4)
    assert not (machines.shared / "runs/text-1").exists()


@pytest.mark.parametrize("options", [{}, {"out_dir": "run", "init_from": "resume"}])
def test_overwrite_that_cannot_be_meant_is_refused(machines, options):
    train(machines, "old", max_iters=2, out_dir="run")
    with pytest.raises(ng.UserError, match=r"`overwrite=True` replaces the run `out_dir`"):
        train(machines, "me", max_iters=4, overwrite=True, **options)


@pytest.mark.parametrize(
    ("time_limit", "used", "max_seconds", "remaining"),
    [
        (0, 50, 0, 0),  # no limit
        (0, 50, 20, 20),
        (3600, 0, 0, 3570),  # 30 s are kept for the last evaluation and checkpoint
        (3600, 600, 0, 2970),
        (3600, 600, 60, 60),
        (3600, 3550, 60, 20),
        (60, 0, 0, 45),  # a quarter of a short limit
        (3600, 9999, 0, 1e-3),  # not 0, which means no limit
    ],
)
def test_rest_of_the_time_limit(time_limit, used, max_seconds, remaining):
    gpu_time: Any = SimpleNamespace(seconds=used)
    assert jobs._remaining_seconds(time_limit, gpu_time, max_seconds) == pytest.approx(remaining)


def test_gpu_time_of_each_call_is_stored_beside_the_run_until_it_is_replaced(machines):
    def read():
        return json.loads((machines.shared / "runs/text-1" / GPU_TIME_FILE).read_text())

    train(machines, "a", max_iters=2)
    train(machines, "a", max_iters=4)
    train(machines, "b", init_from="resume", max_iters=6)
    assert {call_id: call["attempts"] for call_id, call in read().items()} == {"a": 2, "b": 1}
    storage = machines.start()
    storage.pull(Path("runs/text-1"))  # as a warm machine has it
    train_here(storage, machines, "c", out_dir="text-1", overwrite=True, max_iters=2)
    assert set(read()) == {"c"}
