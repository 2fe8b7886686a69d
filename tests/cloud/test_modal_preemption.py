"""Preemptions, crashes, limits of time and lost clients: a training on Modal still becomes the same run, once.

Modal may end a container at any moment and starts its call again in a new one. See `local_modal` and `modal_commands`.
"""

import json
import os
import random
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

import nanogpt_lite as ng

pytest.importorskip("modal")
if sys.platform != "linux":
    pytest.skip("the local Modal watches containers through /proc", allow_module_level=True)

import modal_commands
from conftest import TEXT
from modal_commands import (
    APP,
    ROOT,
    SMALL,
    VOLUME_NAME,
    environment_with_modal_alone,
    functions_of,
    last_eval_step,
    map_in_pairs,
    modal_run,
    read_last,
    records_of,
    stored_run,
    stored_runs,
    to_flags,
    train_without_modal,
)

service, prepared = modal_commands.service, modal_commands.prepared  # fixtures
GOLDEN = ROOT / "tests/golden/v0.1"  # see tests/system/test_earlier_versions.py
OPTIONS = {"preset": "tutorial", **SMALL, "max_iters": 200, "eval_interval": 10, "dropout": 0.1}


def start_command(service, *arguments, **options):
    """Start `modal run` on a machine where only the package modal is installed."""
    return service.popen_modal("run", *arguments, env=environment_with_modal_alone(service.folder / "alone"), **options)


def containers_of(service, function):
    return [container for container in service.containers if container.function == function]


def end_containers(service, function, *, ends, rng):
    """Preempt the containers of a Function `ends` times, one of them with SIGKILL: a crash, which counts as a failure.

    Each at a random moment: an evaluation, or 0 for the moment at which the container starts.
    """
    moments = sorted(rng.sample(range(11), ends))
    killed = rng.randrange(ends)
    print(f"{function}: moments {moments}, killed at number {killed}")
    for number, moment in enumerate(moments):
        service.wait_for(lambda n=number: len(containers_of(service, function)) > n, timeout=60)
        container = containers_of(service, function)[number]
        service.wait_for(lambda c=container, step=10 * moment: last_eval_step(c.output) >= step, timeout=60)
        (service.crash if number == killed else service.preempt)(container)


def assert_each_step_was_evaluated_once(service, run, *, max_iters, eval_interval=10):
    steps = [record["step"] for record in records_of(service, run, "eval")]
    assert steps == list(range(eval_interval, max_iters + 1, eval_interval))


@pytest.mark.parametrize(
    ("service", "ends"),
    [
        pytest.param(False, 2, id="twice", marks=pytest.mark.slow),
        pytest.param(False, 4, id="four_times", marks=pytest.mark.slow),
        pytest.param(True, 4, id="with_commits_at_exit", marks=pytest.mark.slow),
    ],
    indirect=["service"],
)
def test_run_is_bit_exact_after_preemptions_and_a_kill_at_random_moments(prepared, ends, tmp_path, monkeypatch):
    client = start_command(prepared, f"{APP}::train", "--dataset=bottles", *to_flags(OPTIONS))
    end_containers(prepared, "train", ends=ends, rng=random.Random())
    assert client.wait(120) == 0, prepared.report()
    assert functions_of(prepared.containers) == ["train"] * (ends + 1)
    assert len({input_id for container in prepared.containers for input_id in container.input_ids}) == 1
    assert stored_runs(prepared) == ["bottles-1"]
    assert_each_step_was_evaluated_once(prepared, "bottles-1", max_iters=200)

    undisturbed = train_without_modal(prepared, tmp_path / "work", monkeypatch, out_dir="runs/bottles", **OPTIONS)
    assert read_last(prepared, "bottles-1") == (undisturbed.out_dir / "last.safetensors").read_bytes()


@pytest.mark.slow
def test_detached_pipeline_is_bit_exact_after_preemptions_of_each_step_and_a_kill(service, tmp_path, monkeypatch):
    (tmp_path / "bottles.txt").write_text(TEXT, encoding="utf-8", newline="\n")
    client = start_command(
        service, "--detach", APP, "--dataset=bottles.txt", *to_flags(OPTIONS), "--max-new-tokens=1000", cwd=tmp_path
    )
    service.wait_for(lambda: containers_of(service, "prepare_data"), timeout=60)
    service.preempt(containers_of(service, "prepare_data")[0])
    end_containers(service, "train", ends=4, rng=random.Random())
    service.wait_for(lambda: containers_of(service, "sample"), timeout=60)
    service.preempt(containers_of(service, "sample")[0])
    stdout, stderr = client.communicate(timeout=120)
    assert client.returncode == 0, stdout + stderr
    assert functions_of(service.containers) == ["prepare_data"] * 2 + ["train"] * 5 + ["sample"] * 2
    assert service.containers[-1].output.count("---------------") == 2
    assert_each_step_was_evaluated_once(service, "bottles-1", max_iters=200)
    undisturbed = train_without_modal(service, tmp_path / "work", monkeypatch, out_dir="runs/bottles", **OPTIONS)
    assert read_last(service, "bottles-1") == (undisturbed.out_dir / "last.safetensors").read_bytes()


@pytest.mark.slow
def test_sweep_trains_each_trial_once_when_trainings_and_the_sweep_itself_end(prepared, tmp_path, monkeypatch):
    options = {**OPTIONS, "min_lr": 0.0, "max_iters": 600}
    grid = ["--learning-rate=1e-4,1e-2", "--sweep-iters=300", "--out-dir=grid"]
    client = start_command(prepared, f"{APP}::sweep", "--dataset=bottles", *to_flags(options), *grid)

    def end_training(number, end, *, step):
        """End the container that was started as this number, once it has reached a step."""
        prepared.wait_for(lambda: len(containers_of(prepared, "train")) > number, timeout=60)
        container = containers_of(prepared, "train")[number]
        prepared.wait_for(lambda: last_eval_step(container.output) >= step, timeout=60)
        end(container)

    rng = random.Random()
    steps = [10 * rng.randrange(21) for _ in range(2)]
    print("trials end at steps", steps)
    end_training(0, prepared.preempt, step=steps[0])  # of each of the two trials, which train at the same time
    end_training(1, prepared.crash, step=steps[1])
    prepared.crash(containers_of(prepared, "sweep")[0])
    end_training(4, prepared.preempt, step=310)  # the best trial is resumed from step 300
    end_training(5, prepared.crash, step=320)
    stdout, stderr = client.communicate(timeout=120)
    assert client.returncode == 0, stdout + stderr

    trainings = containers_of(prepared, "train")
    assert len(trainings) == 7
    assert len({input_id for container in trainings for input_id in container.input_ids}) == 3  # trials + 1
    assert len(containers_of(prepared, "sweep")) == 2
    runs = {name.rsplit("-", 1)[1]: name for name in stored_runs(prepared)}
    assert sorted(runs) == ["1", "2"]
    assert_each_step_was_evaluated_once(prepared, runs["1"], max_iters=300)
    assert_each_step_was_evaluated_once(prepared, runs["2"], max_iters=600)
    options = {**options, "lr_decay_iters": 600, "max_iters": 300, "out_dir": "runs/mine"}
    train_without_modal(prepared, tmp_path / "work1", monkeypatch, learning_rate=1e-4, **options)
    assert read_last(prepared, runs["1"]) == Path("runs/mine/last.safetensors").read_bytes()
    train_without_modal(prepared, tmp_path / "work2", monkeypatch, learning_rate=1e-2, **options)
    ng.train(out_dir="runs/mine", init_from="resume", max_iters=600)
    assert read_last(prepared, runs["2"]) == Path("runs/mine/last.safetensors").read_bytes()


@pytest.mark.slow  # the parts are tested without Modal's client too
def test_detached_training_ends_without_its_client(prepared, tmp_path, monkeypatch):
    client = start_command(prepared, "--detach", f"{APP}::train", "--dataset=bottles", *to_flags(OPTIONS))
    prepared.wait_for(lambda: prepared.containers and last_eval_step(prepared.containers[0].output) >= 20, timeout=60)
    os.kill(client.pid, signal.SIGKILL)
    assert client.wait(10) == -signal.SIGKILL
    prepared.preempt(prepared.containers[0])  # nobody but Modal can start the call again
    prepared.wait_for(lambda: len(prepared.containers) == 2 and prepared.containers[1].end_reason, timeout=60)
    assert [container.end_reason for container in prepared.containers] == ["preempted", "done"]
    undisturbed = train_without_modal(prepared, tmp_path / "work", monkeypatch, out_dir="runs/bottles", **OPTIONS)
    assert read_last(prepared, "bottles-1") == (undisturbed.out_dir / "last.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        ["--out-dir=old", "--overwrite", *to_flags(OPTIONS)],
        ["--out-dir=old", "--init-from=resume", "--max-iters=200", "--learning-rate=2e-3", "--device=cpu"],
        ["--init-from=old", "--out-dir=new", *to_flags(OPTIONS)],
    ],
    ids=["overwrite", "resume", "weights"],
)
def test_existing_run_is_replaced_resumed_or_started_from_once_over_a_preemption_and_a_kill(
    prepared, flags, tmp_path, monkeypatch
):
    runs = prepared.volume(VOLUME_NAME) / "runs"
    options = {**OPTIONS, "max_iters": 50}
    train_without_modal(prepared, tmp_path / "work", monkeypatch, out_dir=runs / "old", **options)
    shutil.copytree(runs / "old", tmp_path / "old")
    (prepared.volume(VOLUME_NAME) / "texts").mkdir()  # the text itself, which the tokenizer of another run encodes
    shutil.copy(tmp_path / "bottles.txt", prepared.volume(VOLUME_NAME) / "texts")
    client = start_command(prepared, f"{APP}::train", "--dataset=bottles", *flags)
    for number, (end, step) in enumerate([(prepared.preempt, 0), (prepared.preempt, 70), (prepared.crash, 110)]):
        prepared.wait_for(lambda n=number: len(prepared.containers) > n, timeout=60)
        container = prepared.containers[number]
        prepared.wait_for(lambda c=container, s=step: last_eval_step(c.output) >= s, timeout=60)
        end(container)
    stdout, stderr = client.communicate(timeout=120)
    assert client.returncode == 0, stdout + stderr
    assert functions_of(prepared.containers) == ["train"] * 4
    name = "new" if "--out-dir=new" in flags else "old"
    assert stored_runs(prepared) == sorted({"old", name})
    assert_each_step_was_evaluated_once(prepared, name, max_iters=200)

    disturbed = read_last(prepared, name)
    shutil.rmtree(runs / "old")
    shutil.copytree(tmp_path / "old", runs / "old")
    modal_run(prepared, f"{APP}::delete", "--out-dir=new", code=0 if name == "new" else 2)
    modal_run(prepared, f"{APP}::train", "--dataset=bottles", *flags)  # undisturbed
    assert read_last(prepared, name) == disturbed


@pytest.mark.slow
def test_interrupted_client_saves_the_run_which_is_then_resumed(prepared, tmp_path, monkeypatch):
    client = start_command(prepared, f"{APP}::train", "--dataset=bottles", *to_flags(OPTIONS))
    prepared.wait_for(lambda: prepared.containers and last_eval_step(prepared.containers[0].output) >= 20, timeout=60)
    client.send_signal(signal.SIGINT)  # Ctrl-C
    stdout, stderr = client.communicate(timeout=60)
    assert "App aborted" in stdout
    assert "Traceback" not in stdout + stderr
    assert "::train --out-dir NAME --init-from resume continues it" in stderr
    prepared.wait_for(lambda: prepared.containers[0].end_reason == "stopped", timeout=60)
    (done,) = records_of(prepared, "bottles-1", "done")
    assert done["reason"] == "interrupted"
    modal_run(prepared, f"{APP}::train", "--init-from=resume", "--device=cpu")
    undisturbed = train_without_modal(prepared, tmp_path / "work", monkeypatch, out_dir="runs/bottles", **OPTIONS)
    assert read_last(prepared, "bottles-1") == (undisturbed.out_dir / "last.safetensors").read_bytes()


@pytest.mark.slow
def test_training_whose_run_is_deleted_stops_without_a_retry(prepared):
    options = {**OPTIONS, "max_iters": 100_000}
    client = start_command(prepared, f"{APP}::train", "--dataset=bottles", *to_flags(options))
    prepared.wait_for(lambda: stored_runs(prepared), timeout=60)
    modal_run(prepared, f"{APP}::delete", "--out-dir=bottles-1")
    stdout, stderr = client.communicate(timeout=60)
    assert client.returncode == 2
    assert stderr.startswith("error: another call took over the run bottles-1, or it was deleted"), stdout + stderr
    assert len(stderr.splitlines()) == 1
    assert functions_of(prepared.containers) == ["train"]
    assert stored_runs(prepared) == []


@pytest.mark.slow
def test_ranks_on_several_gpus_save_on_preemption_and_resume(prepared):
    options = {"preset": "tutorial", **SMALL, "batch_size": 8, "eval_interval": 10, "max_iters": 1000}
    client = start_command(prepared, f"{APP}::train", "--dataset=bottles", "--gpu=A100-80GB:2", *to_flags(options))
    prepared.wait_for(
        lambda: any(last_eval_step(container.output) >= 20 for container in prepared.containers), timeout=60
    )
    first = prepared.containers[0]
    assert (first.gpu_type, first.gpu_count, first.cpu, first.memory) == ("A100-80GB", 2, 8, 16384)
    prepared.preempt(first)
    assert client.wait(120) == 0, prepared.report()
    assert len(prepared.containers) == 2
    ended, started = records_of(prepared, "bottles-1", "done"), records_of(prepared, "bottles-1", "start")
    assert [record["ranks"] for record in started] == [2, 2]
    assert [record["reason"] for record in ended] == ["interrupted", "max_iters"]
    assert started[1]["step"] == ended[0]["step"]


@pytest.mark.slow
def test_time_limit_counts_over_a_preemption_and_the_printed_command_continues(prepared, tmp_path):
    mine = tmp_path / "mine.py"  # as of a user who writes a pipeline of his own
    options = {"preset": "tutorial", **SMALL, "max_iters": 10**9, "eval_interval": 100}
    mine.write_text(
        f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from modal_app import app, train

@app.local_entrypoint()
def limited():
    print(train.remote(dataset="bottles", time_limit=6.0, **{options!r}))
"""
    )
    client = start_command(prepared, f"{mine}::limited")
    prepared.wait_for(lambda: prepared.containers and last_eval_step(prepared.containers[0].output), timeout=60)
    started = time.monotonic()
    prepared.wait_for(lambda: time.monotonic() - started > 2.5)
    prepared.preempt(prepared.containers[0])
    stdout, stderr = client.communicate(timeout=60)
    assert client.returncode == 0, stdout + stderr
    assert "'reason': 'max_seconds'" in stdout
    (used,) = json.loads((stored_run(prepared, "bottles-1").out_dir / "gpu_time.json").read_text()).values()
    assert used["attempts"] == 2
    first, second = (record["seconds"] for record in records_of(prepared, "bottles-1", "done"))
    assert first < second < used["seconds"], "the training of both attempts, and the whole of both"

    step = stored_run(prepared, "bottles-1").metrics[-1]["step"]
    (command,) = re.findall(rf"the run is saved at step {step}\. To go on: (.*) \(", prepared.containers[1].output)
    assert command.startswith("modal run modal_app.py::train ")
    arguments = command.replace("modal_app.py", str(APP)).split()[2:]
    last = step + 150
    modal_run(prepared, *arguments, "--device=cpu", f"--max-iters={last}")
    done = records_of(prepared, "bottles-1", "done")
    assert [(record["reason"], record["step"]) for record in done[1:]] == [("max_seconds", step), ("max_iters", last)]
    steps = [record["step"] for record in records_of(prepared, "bottles-1", "eval")]
    assert steps == sorted({*range(100, last + 1, 100), step, last})


@pytest.fixture
def volume_of_version_0_1(service):
    """The Volume as version 0.1 wrote it: with the ids of the calls that trained a run, without the time they took."""
    volume = service.volume(VOLUME_NAME)
    shutil.copytree(GOLDEN / "data", volume / "datasets")
    shutil.copytree(GOLDEN / "runs", volume / "runs")
    for run in (volume / "runs").iterdir():
        (run / "owners").write_text("fc-01J000000000000000000000-in-01J0\n")
    return service


@pytest.mark.slow  # its parts are tested without Modal's client
def test_run_of_version_0_1_is_sampled_evaluated_listed_and_resumed(volume_of_version_0_1):
    service = volume_of_version_0_1
    expected = json.loads((GOLDEN / "expected.json").read_text(encoding="utf-8"))["plain"]
    name = ("--out-dir=plain", "--device=cpu", "--threads=1")
    sampled, evaluated = map_in_pairs(
        lambda arguments: modal_run(service, *arguments),
        (f"{APP}::sample", *name, "--start=The ", "--temperature=0", "--max-new-tokens=40"),
        (f"{APP}::evaluate", *name),
    )
    assert expected["greedy"].removesuffix("\n") in sampled
    result = json.loads(next(line for line in evaluated.splitlines() if line.startswith("{")))
    assert (result["step"], result["train_loss"], result["val_loss"]) == (
        20,
        pytest.approx(expected["eval"]["train_loss"], abs=1e-4),
        pytest.approx(expected["eval"]["val_loss"], abs=1e-4),
    )
    modal_run(service, f"{APP}::train", "--out-dir=plain", "--device=cpu", "--init-from=resume", "--max-iters=40")
    losses = {record["step"]: record["val_loss"] for record in records_of(service, "plain", "eval")}
    assert sorted(losses) == [10, 20, 30, 40]
    for step, loss in expected["resumed"].items():
        assert losses[int(step)] == pytest.approx(loss, abs=1e-4)
    owners = (service.volume(VOLUME_NAME) / "runs/plain/owners").read_text().split()
    assert len(owners) == 2
    rows = [line.split() for line in modal_run(service, f"{APP}::runs").splitlines()]
    assert [row[1:3] for row in rows if row[0] == "plain"] == [["sea", "40"]]
