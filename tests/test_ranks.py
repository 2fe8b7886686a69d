"""Several ranks train what one process trains; whatever happens to one of them, all end, and nothing is lost."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked_ranks
import pytest
import torch

import nanogpt_lite as ng
from nanogpt_lite import checkpoint, ranks, state, trainer

SMALL = {"preset": "cpu", "block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 8, "batch_size": 8, "threads": 1}
SMALL |= {"max_iters": 12, "eval_interval": 4, "log_interval": 1, "warmup_iters": 2, "learning_rate": 0.01}


def train(options):
    ng.train("bottles.txt", **{**SMALL, **options})


def records(out_dir, kind):
    return [record for record in ng.Run(Path(out_dir)).metrics if record["kind"] == kind]


def losses(out_dir):
    steps = {record["step"]: record["loss"] for record in records(out_dir, "step")}
    return steps, {record["step"]: (record["train_loss"], record["val_loss"]) for record in records(out_dir, "eval")}


def require_same_losses(out_dir, expected, tolerance=1e-5):  # the design promises 1e-4
    for got, wanted in zip(losses(out_dir), losses(expected), strict=True):
        assert sorted(got) == sorted(wanted)
        for step, value in wanted.items():
            assert got[step] == pytest.approx(value, abs=tolerance), step


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
    alone, shared = (checkpoint.load(Path(f"runs/{name}/last.safetensors")).tensors for name in ("alone", "shared"))
    for name, tensor in alone.items():
        if name.startswith("model.") and "dtype" not in options:
            torch.testing.assert_close(shared[name], tensor, atol=1e-4, rtol=1e-3)


def test_another_number_of_ranks_goes_on(folder):
    train({"out_dir": "runs/alone"})
    for count, until in ((4, 4), (2, 8)):
        options = {"out_dir": "runs/shared", "max_iters": until, "lr_decay_iters": 12}
        options |= {"init_from": "resume"} if until > 4 else {}
        assert forked_ranks.run(count, train, options) == [0] * count
    train({"out_dir": "runs/shared", "max_iters": 12, "init_from": "resume"})
    require_same_losses("runs/shared", "runs/alone")


@pytest.mark.parametrize("count", [2, 4])
def test_as_many_ranks_go_on_bit_for_bit(folder, count):
    options = {"dropout": 0.1, "n_layer": 2, "n_embd": 32}
    assert forked_ranks.run(count, train, {**options, "out_dir": "runs/whole"}) == [0] * count
    halves = {"out_dir": "runs/halves", "lr_decay_iters": 12}
    assert forked_ranks.run(count, train, {**options, **halves, "max_iters": 5}) == [0] * count
    assert forked_ranks.run(count, train, {**options, **halves, "init_from": "resume"}) == [0] * count
    whole, parts = (checkpoint.load(Path(f"runs/{name}/last.safetensors")).tensors for name in ("whole", "halves"))
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())


def test_each_rank_drops_other_activations(folder):
    def count(options):
        return [round(loss, 4) for loss in losses(options["out_dir"])[0].values()]

    shared = {"out_dir": "runs/shared", "dropout": 0.5, "max_iters": 2}
    alone = {**shared, "out_dir": "runs/alone"}
    assert forked_ranks.run(2, train, shared) == [0, 0]
    train(alone)
    assert count(shared) != count(alone)  # with one mask for both shares and one for all, they could be no others


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

    if ranks.rank() == 0:
        trainer.save = no_space
    train(options)


def test_a_checkpoint_that_cannot_be_written_ends_all(folder):
    assert forked_ranks.run(2, train_on_a_full_disk, {"out_dir": "runs/full"}) == [1, 1]
    assert Path("rank0.error").read_text().startswith("OSError: [Errno 28] No space left on device")
    assert "No space left" in Path("rank1.error").read_text()


def reached(out_dir, step):
    deadline = time.monotonic() + 60
    while not [record for record in records(out_dir, "checkpoint") if record["step"] >= step]:
        assert time.monotonic() < deadline, "the ranks do not get on"
        time.sleep(0.02)  # a file tells nobody that it grew


def test_a_signal_to_one_rank_stops_all_at_the_same_step(folder):
    options = {"out_dir": "runs/shared", "max_iters": 100_000}
    processes = forked_ranks.start(2, train, options)
    reached("runs/shared", 4)
    os.kill(processes[1].pid, signal.SIGTERM)
    assert forked_ranks.statuses(processes) == [0, 130]  # the first one was not asked
    (done,) = records("runs/shared", "done")
    assert done["reason"] == "interrupted"
    saved = checkpoint.load(Path("runs/shared/last.safetensors"))
    assert saved.about["step"] == done["step"]
    train({"out_dir": "runs/shared", "init_from": "resume", "max_iters": done["step"] + 3})


def test_when_one_is_killed_the_other_ends_and_the_checkpoint_is_whole(folder):
    processes = forked_ranks.start(2, train, {"out_dir": "runs/shared", "max_iters": 100_000})
    reached("runs/shared", 4)
    processes[0].kill()
    assert forked_ranks.statuses(processes) == [None, 1]
    assert "another rank has ended" in Path("rank1.error").read_text()
    assert checkpoint.load(Path("runs/shared/last.safetensors")).about["step"] >= 4


def test_started_anew_by_torchrun_it_goes_on(folder, monkeypatch):
    train({"out_dir": "runs/bottles", "max_iters": 4, "lr_decay_iters": 12})
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    train({"out_dir": "runs/bottles", "lr_decay_iters": 12, "overwrite": True})
    assert [record["step"] for record in records("runs/bottles", "start")] == [0, 4]
    train({"out_dir": "runs/new", "max_iters": 1})  # the first one died before it saved


def test_a_number_of_ranks_without_the_others_is_told_of(folder, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ng.WorldError, match="WORLD_SIZE=2 says .* start them with torchrun, or unset WORLD_SIZE"):
        train({"out_dir": "runs/alone"})


def test_each_rank_has_a_gpu_of_its_own(monkeypatch):
    asked, meta = [], torch.device("meta")
    monkeypatch.setattr("nanogpt_lite.runtime.torch.device", lambda name: asked.append(name) or meta)
    monkeypatch.setattr("nanogpt_lite.runtime.torch.cuda.is_available", lambda: True)
    for world, name in (("1", "auto"), ("4", "auto"), ("4", "cuda"), ("4", "cuda:0"), ("4", "cpu")):
        monkeypatch.setenv("WORLD_SIZE", world)
        monkeypatch.setenv("LOCAL_RANK", "3")
        state.runtime.resolve_device(name)
    assert asked == ["cuda", "cuda:3", "cuda:3", "cuda:0", "cpu"]


@pytest.mark.slow
def test_under_torchrun_itself_a_killed_rank_is_replaced(folder):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=1"]
    command += ["-m", "nanogpt_lite", "train", "--dataset=bottles.txt", "--out_dir=runs/shared"]
    options = {**SMALL, "max_iters": 400, "lr_decay_iters": 400}
    command += [f"--{name}={value}" for name, value in options.items()]
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
