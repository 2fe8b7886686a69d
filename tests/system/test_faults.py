"""After a fault during training, the files on disk are complete, and the resumed run equals an undisturbed one.

Each fault happens to a real process: it is killed where a file changes or at a random moment, or the operating system
refuses an operation. `pytest --slow` runs all cases; its last lines count them.
"""

import contextlib
import json
import os
import random
import re
import signal
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import forked_ranks
import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import wait_for
from tiny import TINY_GPT

import nanogpt_lite as ng
from nanogpt_lite.checkpoint import checkpoint_file
from nanogpt_lite.data import verification
from nanogpt_lite.tracking import metrics_file
from nanogpt_lite.trainer import loop, step

pytestmark = pytest.mark.posix("forks processes, kills them, and limits what they may write")
OPTIONS: dict[str, Any] = {**TINY_GPT, "dropout": 0.1, "max_iters": 12, "eval_interval": 4, "log_interval": 3}
OUT = Path("runs/faulty")


class KillPoints:
    """Counts the points of a program at which a file changes; at point number `fatal` the process kills itself."""

    def __init__(self, fatal=None):
        self.fatal, self.reached = fatal, []
        self.around(Path, "touch", before="the file is created")
        self.around(safetensors.torch, "save_file", before="the write", half=self.half_of_a_file, after="the write")
        self.around(os, "fsync", before="the flush", after="the flush")
        self.around(Path, "replace", before="the rename", after="the rename")
        self.around(os, "write", half=self.half_of_a_line)

    def around(self, owner, name, *, before="", half=None, after=""):
        call = getattr(owner, name)

        def counted(*args, **options):
            if name == "write" and bytes(args[1][:7]) != b'{"kind"':
                return call(*args, **options)  # not a line of the metrics
            if before:
                self.at(f"before {before}")
            if half:
                self.at(f"in {name}", lambda: half(call, *args, **options))
            result = call(*args, **options)
            if after:
                self.at(f"after {after}")
            return result

        setattr(owner, name, counted)

    def at(self, point, damage=lambda: None):
        if len(self.reached) == self.fatal:
            damage()
            os.kill(os.getpid(), signal.SIGKILL)
        self.reached.append(point)

    @staticmethod
    def half_of_a_file(call, tensors, path, metadata):
        call(tensors, path, metadata=metadata)
        os.truncate(path, Path(path).stat().st_size // 2)

    @staticmethod
    def half_of_a_line(call, handle, line):
        call(handle, line[: len(line) // 2])


def train(options, fatal=None, count=False):
    """Start or resume the run, as a user would."""
    resume: dict[str, Any] = {"init_from": "resume"} if any(OUT.glob("*.safetensors")) else {}
    points = KillPoints(fatal) if fatal is not None or count else None
    ng.train("bottles.txt", **{**OPTIONS, "out_dir": OUT, **options}, **resume)
    if points is not None and count:
        Path("points.json").write_text(json.dumps(points.reached), encoding="utf-8")


STARTED = Path("started")


def train_and_signal_start(options):
    """The same; creates a file when training has started."""
    resume: dict[str, Any] = {"init_from": "resume"} if any(OUT.glob("*.safetensors")) else {}
    for record in ng.training("bottles.txt", **{**OPTIONS, "out_dir": OUT, **options}, **resume):
        if record.kind == "start":
            STARTED.touch()


def start_training(options):
    """A process that is training."""
    STARTED.unlink(missing_ok=True)
    (process,) = forked_ranks.Job().start(1, train_and_signal_start, options)
    wait_for(STARTED.exists)
    return process


def exit_status_of(function, *arguments):
    """The exit status of a process that calls a function."""
    (status,) = forked_ranks.run(1, function, *arguments)
    return status


def reproducible_parts():
    """Everything of a run that does not depend on when it was trained: file names, losses, checkpoints."""
    names = sorted(path.name for path in OUT.iterdir())
    metrics = ng.Run(OUT).metrics
    values = [(r["kind"], r["step"], r.get("loss"), r.get("val_loss"), r.get("train_loss")) for r in metrics]
    losses = [record for record in values if record[0] in ("step", "eval")]
    return names, losses, {name: (OUT / f"{name}.safetensors").read_bytes() for name in ("best", "last")}


@pytest.fixture
def undisturbed(text_file):
    """The reproducible parts of an undisturbed run, and the kill points that it reached."""
    ng.prepare("bottles.txt")
    assert exit_status_of(train, {}, None, True) == 0
    expected = reproducible_parts()
    delete_run()
    yield expected, json.loads(Path("points.json").read_text(encoding="utf-8"))
    forked_ranks.kill_all()


def delete_run():
    for path in OUT.iterdir():
        path.unlink()


def require_readable():
    """Right after a fault every file is complete or does not exist."""
    for path in OUT.glob("*.safetensors"):
        checkpoint_file.read_checkpoint(path)
    for record in metrics_file.read_metrics(OUT / "metrics.jsonl"):
        assert isinstance(record["step"], int)


def require_same_run_after_kills(points, expected):
    for fatal in points:
        assert exit_status_of(train, {}, fatal) == -signal.SIGKILL
        if OUT.is_dir():
            require_readable()
        assert exit_status_of(train, {}) == 0
        assert reproducible_parts() == expected, f"killed at point {fatal}"
        delete_run()


def test_resume_is_bit_exact_after_a_kill_at_any_point_of_a_save(undisturbed, case_counts):
    expected, points = undisturbed
    saves = [number for number, point in enumerate(points) if point == "before the write"]
    # the save of `last` at the second evaluation, from its touch on
    faults = range(saves[3] - 1, saves[4] - 1)
    assert {points[number] for number in faults} == set(points)
    require_same_run_after_kills(faults, expected)
    case_counts["faults at points of a save"] += len(faults)


@pytest.mark.slow
def test_resume_is_bit_exact_after_a_kill_at_every_point_of_a_run(undisturbed, case_counts):
    expected, points = undisturbed
    require_same_run_after_kills(range(len(points)), expected)
    case_counts["faults at points of a save"] += len(points)


@pytest.mark.parametrize("count", [4, pytest.param(60, marks=pytest.mark.slow)])
def test_resume_is_bit_exact_after_kills_at_random_moments(text_file, count, case_counts):
    ng.prepare("bottles.txt")
    rng, options = random.Random(count), {"eval_interval": 7, "keep_every": 50, "lr_decay_iters": 500}
    for _ in range(count):
        process = start_training({**options, "max_iters": 10**6})
        time.sleep(rng.uniform(0.0, 0.2))  # the random moment
        process.kill()
        assert forked_ranks.statuses([process]) == [-signal.SIGKILL]
        if OUT.is_dir():
            require_readable()
    end = 10 + max(
        [checkpoint_file.read_checkpoint(path).metadata.step for path in OUT.glob("last.safetensors")], default=0
    )
    assert exit_status_of(train, {**options, "max_iters": end}) == 0
    expected = reproducible_parts()
    delete_run()
    assert exit_status_of(train, {**options, "max_iters": end}) == 0
    assert reproducible_parts() == expected
    case_counts["kills at random moments"] += count


def train_with_file_size_limit(options, limit):
    """No file can get longer than `limit` bytes: the operating system refuses, as it does on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    import resource  # Windows has none

    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    train(options)


@pytest.mark.parametrize("fraction", [0.3, 0.6, 0.9])
def test_full_disk_ends_a_run_with_its_last_save_and_it_resumes(undisturbed, fraction, case_counts):
    expected, _ = undisturbed
    assert exit_status_of(train, {"max_iters": 4, "lr_decay_iters": 12}) == 0
    before = {path: path.read_bytes() for path in OUT.glob("*.safetensors")}
    limit = int(fraction * len(expected[2]["last"]))
    assert exit_status_of(train_with_file_size_limit, {"max_iters": 12}, limit) == 1
    message = Path("rank0.error").read_text(encoding="utf-8")
    assert "OSError" in message
    assert "File too large" in message or "No space left" in message
    assert {path: path.read_bytes() for path in before} == before
    assert not list(OUT.glob(".*.tmp"))
    assert exit_status_of(train, {}) == 0
    assert reproducible_parts()[1:] == expected[1:]
    case_counts["refused by the system"] += 1


def train_as_nobody(options):
    if os.geteuid() == 0:
        ng.train(
            "bottles.txt", **{**OPTIONS, "out_dir": "runs/before"}
        )  # imports everything, which `nobody` may not do
        os.setuid(65534)
    train(options)


def test_read_only_folder_is_an_error_and_stays_unchanged(undisturbed, case_counts):
    expected, _ = undisturbed
    assert exit_status_of(train, {}) == 0
    for folder, mode in ((Path(), 0o777), (OUT, 0o555)):
        folder.chmod(mode)
    try:
        assert exit_status_of(train_as_nobody, {"max_iters": 20}) == 1
        assert "Permission denied" in Path("rank0.error").read_text(encoding="utf-8")
    finally:
        OUT.chmod(0o755)
    assert reproducible_parts() == expected
    case_counts["refused by the system"] += 1


def test_second_interrupt_ends_at_once_and_keeps_the_last_save(undisturbed, case_counts):
    (process,) = forked_ranks.Job().start(1, train_that_hangs, {"max_iters": 1000})
    assert process.pid is not None
    wait_for((OUT / "hanging").exists)
    os.kill(process.pid, signal.SIGINT)
    process.join(0.5)
    assert process.is_alive()  # the first one waits for the end of the step
    while process.is_alive():
        os.kill(process.pid, signal.SIGINT)  # two signals at the same time may count as one
        process.join(0.5)
    assert forked_ranks.statuses([process]) == [130]
    require_readable()
    (OUT / "hanging").unlink()
    assert exit_status_of(train, {"max_iters": 12, "lr_decay_iters": 12}) == 0
    assert reproducible_parts()[2] == undisturbed[0][2]
    case_counts["interrupted twice"] += 1


def train_that_hangs(options):
    """A step after the second evaluation never ends."""
    original = step.train_step

    def hanging_step(state, forward, batch):
        if state.step == 9:
            (OUT / "hanging").touch()
            while True:
                time.sleep(0.01)  # a step that hangs
        original(state, forward, batch)

    with patch.object(loop, "train_step", hanging_step):
        train({**options, "lr_decay_iters": 12})


def flip_bit(content, bit):
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize("count", [400, pytest.param(20_000, marks=pytest.mark.slow)])
def test_flipped_bit_in_a_checkpoint_is_an_error(undisturbed, tmp_path, count, case_counts):
    content = undisturbed[0][2]["last"]
    path, rng = tmp_path / "flipped.safetensors", random.Random(count)
    for _ in range(count):
        path.write_bytes(flip_bit(content, rng.randrange(8 * len(content))))
        with pytest.raises(ng.UserError, match="damaged|not written by this program|of another format"):
            checkpoint_file.read_checkpoint(path)
    case_counts["bits flipped"] += count


def test_flipped_bit_in_the_tokens_is_an_error(text_file, case_counts):
    dataset = ng.prepare("bottles.txt")
    ng.train(dataset, **{**OPTIONS, "out_dir": OUT})
    rng = random.Random(0)
    for name in ("train.bin", "val.bin"):
        path = dataset.path / name
        content = path.read_bytes()
        for _ in range(20):
            path.write_bytes(flip_bit(content, rng.randrange(8 * len(content))))
            for call in (
                lambda: ng.train(dataset, **{**OPTIONS, "out_dir": "runs/new"}),
                lambda: ng.train(out_dir=OUT, init_from="resume", max_iters=20),
                lambda: ng.evaluate(ng.Run(OUT)),
            ):
                with pytest.raises(
                    ng.UserError, match="not those of the text .* `out_dir='data/bottles'` `overwrite=True`"
                ):
                    call()
        path.write_bytes(content)
    ng.prepare("bottles.txt", overwrite=True)
    with contextlib.suppress(FileNotFoundError):
        assert not list(Path("runs/new").iterdir())
    case_counts["bits flipped"] += 40


def change_in_place(path, content):
    with path.open("r+b") as file:
        file.write(content)


def replace(path, content):
    other = path.with_suffix(".other")
    other.write_bytes(content)
    other.replace(path)


def truncate(path, content):
    os.truncate(path, len(content) // 2)


def touch(path, content):
    os.utime(path)


@pytest.mark.parametrize("name", ["train.bin", "val.bin"])
@pytest.mark.parametrize("change", [change_in_place, truncate])
def test_tokens_changed_during_a_run_end_it_and_keep_the_last_save(text_file, change, name, case_counts):
    path = ng.prepare("bottles.txt").path / name
    content = path.read_bytes()
    process = start_training({"max_iters": 10**6, "lr_decay_iters": 12})
    wait_for((OUT / "last.safetensors").exists)
    change(path, flip_bit(content, 100))
    assert forked_ranks.statuses([process]) == [1]
    assert re.match(
        r"UserError: the tokens in .*bottles are not those of the text", Path("rank0.error").read_text(encoding="utf-8")
    )
    require_readable()
    ng.prepare("bottles.txt", overwrite=True)
    end = checkpoint_file.read_checkpoint(OUT / "last.safetensors").metadata.step + 5
    assert exit_status_of(train, {"max_iters": end, "lr_decay_iters": 12}) == 0
    after = reproducible_parts()
    delete_run()
    assert exit_status_of(train, {"max_iters": end, "lr_decay_iters": 12}) == 0
    assert reproducible_parts()[2] == after[2]
    case_counts["data changed under a run"] += 1


@pytest.mark.parametrize("change", [change_in_place, truncate])
def test_tokens_changed_just_before_reading_are_not_used(text_file, change, case_counts):
    data = ng.prepare("bottles.txt")
    path = data.path / "train.bin"
    with verification.open_verified(data) as (train_tokens, val_tokens):
        assert np.array_equal(train_tokens[3:40], data.train[3:40])
        assert np.array_equal(val_tokens[len(val_tokens) - 5 :], data.val[-5:])
        change(path, flip_bit(path.read_bytes(), 100))
        os.utime(path)  # the clock of the file system may be coarse
        for part in (slice(3, 40), slice(len(data.train) - 5, None)):
            with pytest.raises(ng.UserError, match="are not those of the text"):
                train_tokens[part]
    case_counts["data changed under a run"] += 1


def test_changed_tokens_are_not_used_after_a_new_file_replaces_them(text_file, case_counts):
    """The open file is the damaged one, although another file has its name now."""
    data = ng.prepare("bottles.txt")
    path = data.path / "train.bin"
    content = path.read_bytes()
    with verification.open_verified(data) as (train_tokens, _):
        assert len(train_tokens[5:3]) == 0
        change_in_place(path, flip_bit(content, 100))
        os.utime(path)
        replace(path, content)
        for _ in range(2):
            with pytest.raises(ng.UserError, match="are not those of the text"):
                train_tokens[3:40]
        path.unlink()
        with pytest.raises(ng.UserError, match="are not those of the text"):
            train_tokens[3:40]
    case_counts["data changed under a run"] += 1


@pytest.mark.parametrize("change", [replace, touch])
def test_replacing_or_touching_the_token_file_does_not_end_a_run(text_file, change, case_counts):
    path = ng.prepare("bottles.txt").path / "train.bin"
    content = path.read_bytes()
    process = start_training({"max_iters": 10**6})
    wait_for((OUT / "last.safetensors").exists)
    change(path, flip_bit(content, 100))
    steps = len(ng.Run(OUT).metrics)
    wait_for(lambda: len(ng.Run(OUT).metrics) > steps + 5)
    os.kill(process.pid, signal.SIGTERM)
    assert forked_ranks.statuses([process]) == [130]
    replace(path, content)
    stopped = checkpoint_file.read_checkpoint(OUT / "last.safetensors")
    weights = {name: tensor.clone() for name, tensor in stopped.tensors.items()}
    delete_run()
    assert exit_status_of(train, {"max_iters": stopped.metadata.step, "lr_decay_iters": 10**6}) == 0
    undisturbed = checkpoint_file.read_checkpoint(OUT / "last.safetensors").tensors
    assert all(torch.equal(tensor, undisturbed[name]) for name, tensor in weights.items())
    case_counts["data changed under a run"] += 1
