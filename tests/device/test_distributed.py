"""Several ranks train the same as one process; when one of them fails, all end, and the last checkpoint stays."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import forked_ranks
import pytest
import torch
from conftest import wait_for
from rank_training import SMALL, losses, records, require_same_losses, train

import nanogpt_lite as ng
from nanogpt_lite.checkpoint import checkpoint_file
from nanogpt_lite.cli.main import main
from nanogpt_lite.device import devices, distributed
from nanogpt_lite.device.distributed import ProcessGroup
from nanogpt_lite.tracking import metrics_file
from nanogpt_lite.trainer import loop


@pytest.fixture
def folder(text_file):
    ng.prepare("bottles.txt")
    yield text_file.parent
    forked_ranks.kill_all()


@pytest.mark.parametrize(
    ("count", "options"),
    [
        (2, {}),
        (4, {}),
        (4, {"batch_size": 3, "gradient_accumulation_steps": 4}),  # a share is 3 rows: one micro-batch
        (2, {"batch_size": 4, "gradient_accumulation_steps": 3}),  # a share is 6 rows: micro-batches of 4 and 2
        (2, {"eval_iters": 3}),
        (2, {"dtype": "float16", "n_embd": 16}),
    ],
)
def test_the_losses_are_those_of_one_process(folder, count, options):
    assert forked_ranks.run(count, train, {**options, "out_dir": "runs/shared"}) == [0] * count
    train({**options, "out_dir": "runs/alone"})
    require_same_losses("runs/shared", "runs/alone", 1e-3 if "dtype" in options else 1e-5)
    alone, shared = (
        checkpoint_file.read_checkpoint(Path(f"runs/{name}/last.safetensors")).tensors for name in ("alone", "shared")
    )
    for name, tensor in alone.items():
        if name.startswith("model.") and "dtype" not in options:
            torch.testing.assert_close(shared[name], tensor, atol=1e-4, rtol=1e-3)


def test_another_number_of_ranks_goes_on(folder):
    train({"out_dir": "runs/alone"})
    for count, until in ((4, 4), (2, 8)):
        options = {"out_dir": "runs/shared", "max_iters": until, "lr_decay_iters": 12}
        options |= {"init_from": "resume"} if until > 4 else {}
        assert forked_ranks.run(count, train, options) == [0] * count
    train({"out_dir": "runs/shared", "max_iters": 12, "init_from": "resume", "threads": 0})
    require_same_losses("runs/shared", "runs/alone")
    threads = [(record["ranks"], record["threads"]) for record in records("runs/shared", "start")]
    assert threads == [(4, 1), (2, 1), (1, devices.resolve_threads(0))]  # the ranks of these tests have one


@pytest.mark.parametrize("count", [2, 4])
def test_as_many_ranks_go_on_bit_for_bit(folder, count):
    options = {"dropout": 0.1, "n_layer": 2, "n_embd": 32}
    assert forked_ranks.run(count, train, {**options, "out_dir": "runs/whole"}) == [0] * count
    halves = {"out_dir": "runs/halves", "lr_decay_iters": 12}
    assert forked_ranks.run(count, train, {**options, **halves, "max_iters": 5}) == [0] * count
    assert forked_ranks.run(count, train, {**options, **halves, "init_from": "resume"}) == [0] * count
    whole, parts = (
        checkpoint_file.read_checkpoint(Path(f"runs/{name}/last.safetensors")).tensors for name in ("whole", "halves")
    )
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())


def test_the_masks_are_those_of_the_micro_batches_of_one_process(folder):
    """Each rank with one micro-batch of 4 rows, and one process with two of them: each its own mask, the same ones."""
    options = {"dropout": 0.5, "batch_size": 4, "gradient_accumulation_steps": 2}
    assert forked_ranks.run(2, train, {**options, "out_dir": "runs/shared"}) == [0, 0]
    train({**options, "out_dir": "runs/alone"})
    require_same_losses("runs/shared", "runs/alone")


def train_twice(options):
    train({**options, "out_dir": "runs/first"})
    train({**options, "out_dir": "runs/second"})


def test_the_same_ranks_can_train_again(folder):
    assert forked_ranks.run(2, train_twice, {}) == [0, 0]
    require_same_losses("runs/first", "runs/second", 0)


def test_rows_that_cannot_be_shared_are_an_error_on_every_rank(folder):
    assert forked_ranks.run(3, train, {"out_dir": "runs/three"}) == [1, 1, 1]
    for rank in range(3):
        said = Path(f"rank{rank}.error").read_text()
        assert said.startswith("UserError: a step of 8 rows")
        assert "cannot be shared equally by 3 ranks" in said
        assert "--batch_size 9" in said
    assert not Path("runs/three").exists()


def test_a_folder_that_is_taken_is_an_error_on_every_rank_and_left_alone(folder):
    train({"out_dir": "runs/taken"})
    before = Path("runs/taken/last.safetensors").read_bytes()
    assert forked_ranks.run(2, train, {"out_dir": "runs/taken"}) == [1, 1]
    assert [Path(f"rank{rank}.error").read_text().split(":")[0] for rank in range(2)] == ["UserError"] * 2
    assert Path("runs/taken/last.safetensors").read_bytes() == before


def test_without_out_dir_all_share_the_next_free_folder(folder):
    assert forked_ranks.run(2, train, {}) == [0, 0]
    assert [path.name for path in Path("runs").iterdir()] == ["bottles-1"]


def train_on_a_full_disk(options):
    def no_space(given, path):
        raise OSError(28, "No space left on device", str(path))

    if distributed.launched_as_main_process():
        loop.save_state = no_space
    train(options)


def test_a_checkpoint_that_cannot_be_written_ends_all(folder):
    assert forked_ranks.run(2, train_on_a_full_disk, {"out_dir": "runs/full"}) == [1, 1]
    assert Path("rank0.error").read_text().startswith("OSError: [Errno 28] No space left on device")
    assert "No space left" in Path("rank1.error").read_text()


def reached(out_dir, step):
    wait_for(lambda: [r for r in records(out_dir, "checkpoint") if r["step"] >= step and r["name"] == "last"])


def test_a_signal_to_one_rank_stops_all_at_the_same_step(folder):
    options = {"out_dir": "runs/shared", "max_iters": 100_000}
    processes = forked_ranks.Job().start(2, train, options)
    reached("runs/shared", 4)
    os.kill(processes[1].pid, signal.SIGTERM)
    assert forked_ranks.statuses(processes) == [130, 130]
    (done,) = records("runs/shared", "done")
    assert done["reason"] == "interrupted"
    saved = checkpoint_file.read_checkpoint(Path("runs/shared/last.safetensors"))
    assert saved.metadata["step"] == done["step"]
    train({"out_dir": "runs/shared", "init_from": "resume", "max_iters": done["step"] + 3})


def test_when_one_is_killed_the_other_ends_and_the_checkpoint_is_whole(folder):
    processes = forked_ranks.Job().start(2, train, {"out_dir": "runs/shared", "max_iters": 100_000})
    reached("runs/shared", 4)
    processes[0].kill()
    assert forked_ranks.statuses(processes) == [-signal.SIGKILL, 1]
    assert "the ranks have lost each other" in Path("rank1.error").read_text()
    assert checkpoint_file.read_checkpoint(Path("runs/shared/last.safetensors")).metadata["step"] >= 4


def test_started_anew_they_go_on_with_what_they_began(folder):
    job = forked_ranks.Job()
    options = {"lr_decay_iters": 12, "overwrite": True}
    processes = job.start(2, train, {**options, "max_iters": 100_000})
    reached("runs/bottles-1", 4)
    processes[1].kill()
    assert forked_ranks.statuses(processes) == [1, -signal.SIGKILL]
    last = checkpoint_file.read_checkpoint(Path("runs/bottles-1/last.safetensors")).metadata["step"]
    assert job.run(2, train, {**options, "max_iters": last + 3}) == [0, 0]
    assert [record["step"] for record in records("runs/bottles-1", "start")] == [0, last]
    assert not Path("runs/bottles-2").exists()


def test_started_anew_they_leave_alone_what_they_did_not_begin(folder):
    train({"out_dir": "runs/taken"})
    before = Path("runs/taken/last.safetensors").read_bytes()
    job = forked_ranks.Job()
    for _ in range(2):
        assert job.run(2, train, {"out_dir": "runs/taken", "max_iters": 20}) == [1, 1]
    assert Path("runs/taken/last.safetensors").read_bytes() == before


def train_without_metrics(options):
    def no_space(self, record):
        raise OSError(28, "No space left on device")

    metrics_file.MetricsFile.write = no_space
    train(options)


def test_a_first_rank_that_fails_alone_ends_all(folder):
    assert forked_ranks.run(2, train_without_metrics, {"out_dir": "runs/full"}) == [1, 1]
    assert Path("rank0.error").read_text().startswith("OSError: [Errno 28]")
    assert Path("rank1.error").read_text().startswith("ExternalError: the ranks have lost each other")


def test_several_ranks_do_not_guess_which_run_is_meant(folder):
    train({"out_dir": "runs/one"})
    assert forked_ranks.run(2, train, {"init_from": "resume"}) == [1, 1]
    assert "give --out_dir" in Path("rank1.error").read_text()


def test_a_number_of_ranks_without_the_others_is_told_of(folder, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ng.ExternalError, match="WORLD_SIZE=2 says .* start them with torchrun, or unset WORLD_SIZE"):
        train({"out_dir": "runs/alone"})


@pytest.fixture
def third_of_four(monkeypatch):
    """The group as rank 2 of 4 sees it, on a machine with 4 GPUs; without the other ranks."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", lambda *shape, device: None)
    return ProcessGroup(rank=2, world_size=4, local_rank=2, local_world_size=4)


@pytest.mark.parametrize(("asked", "got"), [("auto", "cuda:2"), ("cuda", "cuda:2"), ("cpu", "cpu")])
def test_each_rank_has_a_gpu_of_its_own(third_of_four, asked, got):
    assert str(devices.resolve_device(asked, third_of_four)) == got


def test_too_few_gpus_and_one_for_all_are_refused(third_of_four, monkeypatch):
    with pytest.raises(ng.UserError, match="one GPU for all ranks; give `device='cuda'`"):
        devices.resolve_device("cuda:0", third_of_four)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ng.UserError, match="4 ranks were started on a machine with 1 GPUs"):
        devices.resolve_device("auto", third_of_four)


def test_a_number_alone_makes_no_rank(folder, monkeypatch):
    monkeypatch.setenv("RANK", "1")  # as some clusters have it, without WORLD_SIZE
    train({"out_dir": "runs/alone"})
    assert losses("runs/alone")[0]


def test_what_is_not_training_wants_one_process(folder, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["sample"]) == 2
    assert "only training runs on several ranks; use nanogpt-lite sample without" in capsys.readouterr().err


TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def flags(**options):
    return [f"--{name}={value}" for name, value in options.items()]


@pytest.mark.slow
def test_under_torchrun_itself_a_killed_rank_is_replaced(folder):
    options = {**SMALL, "max_iters": 400, "lr_decay_iters": 400}
    command = [*TORCHRUN, "--standalone", "--nproc_per_node=2", "--max-restarts=1", "-m", "nanogpt_lite", "train"]
    command += flags(dataset="bottles.txt", out_dir="runs/shared", **options)
    client = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    reached("runs/shared", 8)
    workers = subprocess.run(["pgrep", "-P", str(client.pid)], capture_output=True, text=True, check=True).stdout
    os.kill(int(workers.split()[-1]), signal.SIGKILL)
    printed, told = client.communicate(timeout=120)
    assert client.returncode == 0, told
    assert printed == f"{Path('runs/shared')}\n"
    starts = [record["step"] for record in records("runs/shared", "start")]
    assert len(starts) == 2
    assert starts[1] >= 8
    train({**options, "out_dir": "runs/alone"})
    require_same_losses("runs/shared", "runs/alone", 1e-4)


@pytest.mark.slow
def test_under_torchrun_the_cpu_recipe_is_that_of_one_rank_which_goes_on_with_it(folder):
    """nanoGPT's recipe for a CPU at its full size, on Python's documentation, which needs no network."""
    recipe = {"dataset": "python_docs", "preset": "cpu", "device": "cpu", "eval_interval": 500, "lr_decay_iters": 2000}
    command = [*TORCHRUN, "--standalone", "--nproc_per_node=2", "-m", "nanogpt_lite", "train"]
    subprocess.run([*command, *flags(**recipe, out_dir="runs/shared")], check=True, timeout=1500)
    ng.train(**recipe, out_dir="runs/shared", init_from="resume", max_iters=2500)
    ng.train(**recipe, out_dir="runs/alone", max_iters=2500)
    (_, shared), (_, alone) = losses("runs/shared"), losses("runs/alone")
    assert sorted(shared) == sorted(alone) == [500, 1000, 1500, 2000, 2500]
    for step, expected in alone.items():
        assert shared[step] == pytest.approx(expected, abs=1e-4), step
    assert [record["ranks"] for record in records("runs/shared", "start")] == [2, 1]


@pytest.mark.slow
def test_two_machines_of_torchrun_train_what_one_process_does(folder):
    """Two machines, as far as torchrun knows: one launcher for each, which meet at an address, and a shared folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = ["--nnodes=2", "--nproc_per_node=2", "--master_addr=127.0.0.1", f"--master_port={port}"]
    launched = []
    for number in range(2):
        command = [*TORCHRUN, *meeting, f"--node_rank={number}", "-m", "nanogpt_lite", "train"]
        command += flags(dataset="bottles.txt", out_dir="runs/shared", **SMALL)
        launched.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    for number, machine in enumerate(launched):
        printed, told = machine.communicate(timeout=120)
        assert machine.returncode == 0, told
        assert printed == ("" if number else f"{Path('runs/shared')}\n")
    train({"out_dir": "runs/alone"})
    require_same_losses("runs/shared", "runs/alone")
    assert [record["ranks"] for record in records("runs/shared", "start")] == [4]
