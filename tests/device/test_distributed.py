"""Several ranks train the same as one process; when one of them fails, all end, and the last checkpoint stays."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import forked_ranks
import pytest
import torch
from conftest import wait_for
from rank_training import OPTIONS, losses, records, require_same_losses, train

import nanogpt_lite as ng
from nanogpt_lite.checkpoint import checkpoint_file
from nanogpt_lite.cli.main import main
from nanogpt_lite.device import connection, devices, distributed
from nanogpt_lite.device.distributed import ProcessGroup
from nanogpt_lite.tracking import metrics_file
from nanogpt_lite.trainer import checkpoint_writer

pytestmark = pytest.mark.posix("forks ranks, and sends them signals")


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
def test_ranks_have_the_losses_of_one_process(folder, count, options):
    assert forked_ranks.run(count, train, {**options, "out_dir": "runs/shared"}) == [0] * count
    train({**options, "out_dir": "runs/alone"})
    require_same_losses("runs/shared", "runs/alone", 1e-3 if "dtype" in options else 1e-5)
    alone, shared = (
        checkpoint_file.read_checkpoint(Path(f"runs/{name}/last.safetensors")).tensors for name in ("alone", "shared")
    )
    for name, tensor in alone.items():
        if name.startswith("model.") and "dtype" not in options:
            torch.testing.assert_close(shared[name], tensor, atol=1e-4, rtol=1e-3)


def test_resume_with_another_number_of_ranks(folder):
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
def test_resume_with_the_same_number_of_ranks_is_bit_exact(folder, count):
    options = {"dropout": 0.1, "n_layer": 2, "n_embd": 32}
    assert forked_ranks.run(count, train, {**options, "out_dir": "runs/whole"}) == [0] * count
    halves = {"out_dir": "runs/halves", "lr_decay_iters": 12}
    assert forked_ranks.run(count, train, {**options, **halves, "max_iters": 5}) == [0] * count
    assert forked_ranks.run(count, train, {**options, **halves, "init_from": "resume"}) == [0] * count
    whole, parts = (
        checkpoint_file.read_checkpoint(Path(f"runs/{name}/last.safetensors")).tensors for name in ("whole", "halves")
    )
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())


def test_dropout_masks_of_ranks_are_those_of_micro_batches_of_one_process(folder):
    """Two ranks with one micro-batch of 4 rows each, and one process with both micro-batches."""
    options = {"dropout": 0.5, "batch_size": 4, "gradient_accumulation_steps": 2}
    assert forked_ranks.run(2, train, {**options, "out_dir": "runs/shared"}) == [0, 0]
    train({**options, "out_dir": "runs/alone"})
    require_same_losses("runs/shared", "runs/alone")


def train_twice(options):
    train({**options, "out_dir": "runs/first"})
    train({**options, "out_dir": "runs/second"})


def test_the_same_ranks_can_train_twice(folder):
    assert forked_ranks.run(2, train_twice, {}) == [0, 0]
    require_same_losses("runs/first", "runs/second", 0)


def test_rows_that_cannot_be_shared_equally_are_an_error_on_every_rank(folder):
    assert forked_ranks.run(3, train, {"out_dir": "runs/three"}) == [1, 1, 1]
    for rank in range(3):
        message = Path(f"rank{rank}.error").read_text(encoding="utf-8")
        assert message.startswith("UserError: a step of 8 rows")
        assert "cannot be shared equally by 3 ranks" in message
        assert "`batch_size=9`" in message
    assert not Path("runs/three").exists()


def train_on_two_machines(options):
    """The ranks have no file system in common."""
    os.chdir(f"machine{os.environ['RANK']}")
    train(options)


def test_only_the_main_process_looks_at_the_folder_of_the_run(folder):
    for rank in range(2):
        machine = Path(f"machine{rank}")
        machine.mkdir()
        shutil.copy("bottles.txt", machine)
        shutil.copytree("data", machine / "data")
    earlier = Path("machine1/runs/taken/last.safetensors")
    earlier.parent.mkdir(parents=True)
    earlier.write_bytes(b"of an earlier run")
    assert forked_ranks.run(2, train_on_two_machines, {"out_dir": "runs/taken"}) == [0, 0]
    assert Path("machine0/runs/taken/last.safetensors").is_file()
    assert earlier.read_bytes() == b"of an earlier run"


def test_an_existing_run_is_an_error_on_every_rank_and_is_not_changed(folder):
    train({"out_dir": "runs/taken"})
    before = Path("runs/taken/last.safetensors").read_bytes()
    assert forked_ranks.run(2, train, {"out_dir": "runs/taken"}) == [1, 1]
    assert [Path(f"rank{rank}.error").read_text(encoding="utf-8").split(":")[0] for rank in range(2)] == [
        "UserError"
    ] * 2
    assert Path("runs/taken/last.safetensors").read_bytes() == before


def test_without_out_dir_all_ranks_share_the_next_free_folder(folder):
    assert forked_ranks.run(2, train, {}) == [0, 0]
    assert [path.name for path in Path("runs").iterdir()] == ["bottles-1"]


def train_on_a_full_disk(options):
    def no_space(given, path):
        raise OSError(28, "No space left on device", str(path))

    if distributed.launched_as_main_process():
        checkpoint_writer.save_state = no_space  # type: ignore[attr-defined]
    train(options)


def test_a_checkpoint_that_cannot_be_written_ends_all_ranks(folder):
    assert forked_ranks.run(2, train_on_a_full_disk, {"out_dir": "runs/full"}) == [1, 1]
    assert Path("rank0.error").read_text(encoding="utf-8").startswith("OSError: [Errno 28] No space left on device")
    assert "No space left" in Path("rank1.error").read_text(encoding="utf-8")


def wait_for_step(out_dir, step):
    wait_for(lambda: [r for r in records(out_dir, "checkpoint") if r["step"] >= step and r["name"] == "last"])


def test_a_signal_to_one_rank_stops_all_at_the_same_step(folder):
    options = {"out_dir": "runs/shared", "max_iters": 100_000}
    processes = forked_ranks.Job().start(2, train, options)
    wait_for_step("runs/shared", 4)
    pid = processes[1].pid
    assert pid is not None
    os.kill(pid, signal.SIGTERM)
    assert forked_ranks.statuses(processes) == [130, 130]
    (done,) = records("runs/shared", "done")
    assert done["reason"] == "interrupted"
    saved = checkpoint_file.read_checkpoint(Path("runs/shared/last.safetensors"))
    assert saved.metadata.step == done["step"]
    train({"out_dir": "runs/shared", "init_from": "resume", "max_iters": done["step"] + 3})


def test_after_a_rank_is_killed_the_others_end_and_the_checkpoint_is_complete(folder):
    processes = forked_ranks.Job().start(2, train, {"out_dir": "runs/shared", "max_iters": 100_000})
    wait_for_step("runs/shared", 4)
    processes[0].kill()
    assert forked_ranks.statuses(processes) == [-signal.SIGKILL, 1]
    assert "the connection between the ranks was lost" in Path("rank1.error").read_text(encoding="utf-8")
    assert checkpoint_file.read_checkpoint(Path("runs/shared/last.safetensors")).metadata.step >= 4


def test_restarted_ranks_resume_the_run_that_they_started(folder):
    job = forked_ranks.Job()
    options = {"lr_decay_iters": 12, "overwrite": True}
    processes = job.start(2, train, {**options, "max_iters": 100_000})
    wait_for_step("runs/bottles-1", 4)
    processes[1].kill()
    assert forked_ranks.statuses(processes) == [1, -signal.SIGKILL]
    last = checkpoint_file.read_checkpoint(Path("runs/bottles-1/last.safetensors")).metadata.step
    assert job.run(2, train, {**options, "max_iters": last + 3}) == [0, 0]
    assert [record["step"] for record in records("runs/bottles-1", "start")] == [0, last]
    assert not Path("runs/bottles-2").exists()


def test_restarted_ranks_do_not_change_a_run_that_they_did_not_start(folder):
    train({"out_dir": "runs/taken"})
    before = Path("runs/taken/last.safetensors").read_bytes()
    job = forked_ranks.Job()
    for _ in range(2):
        assert job.run(2, train, {"out_dir": "runs/taken", "max_iters": 20}) == [1, 1]
    assert Path("runs/taken/last.safetensors").read_bytes() == before


def train_without_metrics(options):
    def no_space(self, record):
        raise OSError(28, "No space left on device")

    metrics_file.MetricsFile.write = no_space  # type: ignore[method-assign]
    train(options)


def test_a_failure_of_the_main_process_alone_ends_all_ranks(folder):
    assert forked_ranks.run(2, train_without_metrics, {"out_dir": "runs/full"}) == [1, 1]
    assert Path("rank0.error").read_text(encoding="utf-8").startswith("OSError: [Errno 28]")
    assert (
        Path("rank1.error")
        .read_text(encoding="utf-8")
        .startswith("ExternalError: the connection between the ranks was lost")
    )


def test_several_ranks_resume_only_with_an_out_dir(folder):
    train({"out_dir": "runs/one"})
    assert forked_ranks.run(2, train, {"init_from": "resume"}) == [1, 1]
    assert "give `out_dir`" in Path("rank1.error").read_text(encoding="utf-8")


def test_world_size_without_other_ranks_is_an_error(folder, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ng.ExternalError, match="WORLD_SIZE=2 says .* start them with torchrun, or unset WORLD_SIZE"):
        train({"out_dir": "runs/alone"})


@pytest.fixture
def rank_2_of_4(monkeypatch):
    """The group as rank 2 of 4 sees it, on a machine with 4 GPUs; without the other ranks."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(devices, "find_problem", lambda device: "")
    return ProcessGroup(rank=2, world_size=4, local_rank=2, local_world_size=4)


@pytest.mark.parametrize(("name", "expected"), [("auto", "cuda:2"), ("cuda", "cuda:2"), ("cpu", "cpu")])
def test_each_rank_has_its_own_gpu(rank_2_of_4, name, expected):
    assert str(devices.resolve_device(name, rank_2_of_4)) == expected


def test_too_few_gpus_or_one_gpu_for_all_ranks_are_refused(rank_2_of_4, monkeypatch):
    with pytest.raises(ng.UserError, match="one GPU for all ranks; give `device='cuda'`"):
        devices.resolve_device("cuda:0", rank_2_of_4)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ng.UserError, match="4 ranks were started on a machine with 1 GPUs"):
        devices.resolve_device("auto", rank_2_of_4)


def test_rank_without_world_size_is_a_single_process(folder, monkeypatch):
    monkeypatch.setenv("RANK", "1")  # some clusters set it without WORLD_SIZE
    train({"out_dir": "runs/alone"})
    assert losses("runs/alone")[0]


def test_commands_other_than_train_refuse_several_ranks(folder, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["sample"]) == 2
    assert "only training runs on several ranks; use nanogpt-lite sample without" in capsys.readouterr().err


TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def flags(**options):
    return [f"--{name}={value}" for name, value in options.items()]


@pytest.mark.slow
def test_torchrun_restarts_after_a_rank_is_killed(folder):
    options = {**OPTIONS, "max_iters": 400, "lr_decay_iters": 400}
    command = [*TORCHRUN, "--standalone", "--nproc_per_node=2", "--max-restarts=1", "-m", "nanogpt_lite", "train"]
    command += flags(dataset="bottles.txt", out_dir="runs/shared", **options)
    torchrun = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_step("runs/shared", 8)
    workers = subprocess.run(["pgrep", "-P", str(torchrun.pid)], capture_output=True, text=True, check=True).stdout
    os.kill(int(workers.split()[-1]), signal.SIGKILL)
    stdout, stderr = torchrun.communicate(timeout=120)
    assert torchrun.returncode == 0, stderr
    assert stdout == f"{Path('runs/shared')}\n"
    starts = [record["step"] for record in records("runs/shared", "start")]
    assert len(starts) == 2
    assert starts[1] >= 8
    train({**options, "out_dir": "runs/alone"})
    require_same_losses("runs/shared", "runs/alone", 1e-4)


@pytest.mark.slow
def test_torchrun_has_the_losses_of_one_process_which_can_resume_its_run(folder):
    """nanoGPT's recipe for a CPU at its full size, on Python's documentation, which needs no network."""
    recipe: dict[str, Any] = {
        "dataset": "python_docs",
        "preset": "cpu",
        "device": "cpu",
        "eval_interval": 500,
        "lr_decay_iters": 2000,
    }
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
def test_torchrun_on_two_machines_has_the_losses_of_one_process(folder):
    """Two launchers as on two machines, with one address and a shared folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nodes = ["--nnodes=2", "--nproc_per_node=2", "--master_addr=127.0.0.1", f"--master_port={port}"]
    launched = []
    for number in range(2):
        command = [*TORCHRUN, *nodes, f"--node_rank={number}", "-m", "nanogpt_lite", "train"]
        command += flags(dataset="bottles.txt", out_dir="runs/shared", **OPTIONS)
        launched.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    for number, machine in enumerate(launched):
        stdout, stderr = machine.communicate(timeout=120)
        assert machine.returncode == 0, stderr
        assert stdout == ("" if number else f"{Path('runs/shared')}\n")
    train({"out_dir": "runs/alone"})
    require_same_losses("runs/shared", "runs/alone")
    assert [record["ranks"] for record in records("runs/shared", "start")] == [4]


def train_with(rank_1, timeout, options):
    """Train; before its network is ready, rank 1 does something else."""
    connection.ARRIVAL_TIMEOUT = connection.REDUCE_TIMEOUT = timedelta(seconds=timeout)
    connection.WARNING_DELAY = timedelta(seconds=timeout / 2)
    check = ProcessGroup.check_connection

    def check_connection(group, device):
        if group.rank == 1:
            rank_1()
        check(group, device)

    ProcessGroup.check_connection = check_connection  # type: ignore[method-assign]
    train(options)


def sleep():
    time.sleep(30)  # longer than the other ranks wait


def send_a_two():
    ones = torch.ones
    torch.ones = lambda *args, **options: 2 * ones(*args, **options)


def test_a_rank_that_does_not_begin_is_named(folder):
    processes = forked_ranks.Job().start(3, train_with, sleep, 2, {"out_dir": "runs/a", "batch_size": 9})
    assert [process.join(20) or process.exitcode for process in (processes[0], processes[2])] == [1, 1]
    expected = r"ExternalError: rank 1 did not begin within 2 seconds after rank 0; look for its error in the output"
    assert Path("rank0.error").read_text(encoding="utf-8").startswith(expected)


def test_ranks_that_do_not_add_up_say_what_to_look_at(folder):
    assert forked_ranks.run(2, train_with, send_a_two, 20, {"out_dir": "runs/a"}) == [1, 1]
    error = Path("rank0.error").read_text(encoding="utf-8")
    assert "cannot exchange gradients with the other ranks, which are all there (the sum of 2 ones is 3.0)" in error
    assert "GLOO_SOCKET_IFNAME" in error
