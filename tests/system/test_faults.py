"""Whatever happens to a training in the middle, what is on disk is whole, and goes on as if nothing had happened.

Each fault happens to a real process: it is killed at a point where a file changes, or at any moment, or the system
refuses it something. `pytest --slow` runs through all of them; its last lines count them.
"""

import contextlib
import json
import os
import random
import re
import signal
import time
from pathlib import Path

import forked_ranks
import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import wait_for

import nanogpt_lite as ng
from nanogpt_lite.checkpoint import checkpoint_file
from nanogpt_lite.data import verification
from nanogpt_lite.tracking import metrics_file
from nanogpt_lite.trainer import loop

resource = pytest.importorskip("resource", reason="Windows has no such limits and signals")
TINY = {"preset": "cpu", "block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 8, "batch_size": 4, "dropout": 0.1}
TINY |= {"max_iters": 12, "eval_interval": 4, "log_interval": 3, "warmup_iters": 2, "threads": 1, "device": "cpu"}
OUT = Path("runs/faulty")


class Points:
    """The places of a program at which a file changes, counted: at number `fatal` the process kills itself."""

    def __init__(self, fatal=None):
        self.fatal, self.seen = fatal, []
        self.around(Path, "touch", before="the file begins")
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
            done = call(*args, **options)
            if after:
                self.at(f"after {after}")
            return done

        setattr(owner, name, counted)

    def at(self, what, damage=lambda: None):
        if len(self.seen) == self.fatal:
            damage()
            os.kill(os.getpid(), signal.SIGKILL)
        self.seen.append(what)

    @staticmethod
    def half_of_a_file(call, tensors, path, metadata):
        call(tensors, path, metadata=metadata)
        os.truncate(path, Path(path).stat().st_size // 2)

    @staticmethod
    def half_of_a_line(call, handle, line):
        call(handle, line[: len(line) // 2])


def train(options, fatal=None, count=False):
    """Begin a run or go on with it, as a user would."""
    begun = any(OUT.glob("*.safetensors"))
    points = Points(fatal) if fatal is not None or count else None
    ng.train("bottles.txt", **{**TINY, "out_dir": OUT, **options}, **({"init_from": "resume"} if begun else {}))
    if count:
        Path("points.json").write_text(json.dumps(points.seen))


BEGUN = Path("begun")


def train_and_tell(options):
    """The same, and a file tells when it has begun."""
    going_on = {"init_from": "resume"} if any(OUT.glob("*.safetensors")) else {}
    for record in ng.training("bottles.txt", **{**TINY, "out_dir": OUT, **options}, **going_on):
        if record.kind == "start":
            BEGUN.touch()


def started(options):
    """A process that trains."""
    BEGUN.unlink(missing_ok=True)
    (process,) = forked_ranks.Job().start(1, train_and_tell, options)
    wait_for(BEGUN.exists)
    return process


def end_of(work, *arguments):
    (status,) = forked_ranks.run(1, work, *arguments)
    return status


def what_counts():
    """Everything of a run that does not depend on when it was trained: files and losses."""
    names = sorted(path.name for path in OUT.iterdir())
    kept = [(r["kind"], r["step"], r.get("loss"), r.get("val_loss"), r.get("train_loss")) for r in ng.Run(OUT).metrics]
    losses = [record for record in kept if record[0] in ("step", "eval")]
    return names, losses, {name: (OUT / f"{name}.safetensors").read_bytes() for name in ("best", "last")}


@pytest.fixture
def whole(text_file):
    """What an uninterrupted run leaves behind, and the points that it came by."""
    ng.prepare("bottles.txt")
    assert end_of(train, {}, None, True) == 0
    left = what_counts()
    discard()
    yield left, json.loads(Path("points.json").read_text())
    forked_ranks.kill_all()


def discard():
    for path in OUT.iterdir():
        path.unlink()


def require_readable():
    """What stands there right after a fault is whole, or is not there."""
    for path in OUT.glob("*.safetensors"):
        checkpoint_file.read_checkpoint(path)
    for record in metrics_file.read_metrics(OUT / "metrics.jsonl"):
        assert isinstance(record["step"], int)


def require_the_same_in_spite_of(faults, whole):
    for fatal in faults:
        assert end_of(train, {}, fatal) == -signal.SIGKILL
        if OUT.is_dir():
            require_readable()
        assert end_of(train, {}) == 0
        assert what_counts() == whole, f"fault {fatal}"
        discard()


def test_killed_at_any_point_of_a_save_it_goes_on_bit_for_bit(whole, figures):
    left, points = whole
    saves = [number for number, what in enumerate(points) if what == "before the write"]
    faults = range(saves[3] - 1, saves[4] - 1)  # of last at the second evaluation, from the touch on
    assert {points[number] for number in faults} == set(points)
    require_the_same_in_spite_of(faults, left)
    figures["faults at points of a save"] += len(faults)


@pytest.mark.slow
def test_killed_at_every_point_it_goes_on_bit_for_bit(whole, figures):
    left, points = whole
    require_the_same_in_spite_of(range(len(points)), left)
    figures["faults at points of a save"] += len(points)


@pytest.mark.parametrize("count", [4, pytest.param(60, marks=pytest.mark.slow)])
def test_killed_at_random_moments_it_goes_on_bit_for_bit(text_file, count, figures):
    ng.prepare("bottles.txt")
    moments, always = random.Random(count), {"eval_interval": 7, "keep_every": 50, "lr_decay_iters": 500}
    for _ in range(count):
        process = started({**always, "max_iters": 10**6})
        time.sleep(moments.uniform(0.0, 0.2))  # the moment is what is tried
        process.kill()
        assert forked_ranks.statuses([process]) == [-signal.SIGKILL]
        if OUT.is_dir():
            require_readable()
    end = 10 + max(
        [checkpoint_file.read_checkpoint(path).metadata.step for path in OUT.glob("last.safetensors")], default=0
    )
    assert end_of(train, {**always, "max_iters": end}) == 0
    left = what_counts()
    discard()
    assert end_of(train, {**always, "max_iters": end}) == 0
    assert what_counts() == left
    figures["kills at random moments"] += count


def train_in_little_space(options, limit):
    """No file can get longer than `limit` bytes: the system itself refuses, as it does on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    train(options)


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_a_full_disk_ends_a_run_with_what_was_saved_and_it_goes_on(whole, part, figures):
    left, _ = whole
    assert end_of(train, {"max_iters": 4, "lr_decay_iters": 12}) == 0
    before = {path: path.read_bytes() for path in OUT.glob("*.safetensors")}
    limit = int(part * len(left[2]["last"]))
    assert end_of(train_in_little_space, {"max_iters": 12}, limit) == 1
    said = Path("rank0.error").read_text()
    assert "OSError" in said
    assert "File too large" in said or "No space left" in said
    assert {path: path.read_bytes() for path in before} == before
    assert not list(OUT.glob(".*.tmp"))
    assert end_of(train, {}) == 0
    assert what_counts()[1:] == left[1:]
    figures["refused by the system"] += 1


def train_as_nobody(options):
    if os.geteuid() == 0:
        ng.train("bottles.txt", **{**TINY, "out_dir": "runs/before"})  # who is nobody may not import anything
        os.setuid(65534)
    train(options)


def test_a_folder_that_cannot_be_written_is_told_of_and_left_alone(whole, figures):
    left, _ = whole
    assert end_of(train, {}) == 0
    for folder, mode in ((Path(), 0o777), (OUT, 0o555)):
        folder.chmod(mode)
    try:
        assert end_of(train_as_nobody, {"max_iters": 20}) == 1
        assert "Permission denied" in Path("rank0.error").read_text()
    finally:
        OUT.chmod(0o755)
    assert what_counts() == left
    figures["refused by the system"] += 1


def test_the_second_interrupt_ends_at_once_and_the_last_save_stands(whole, figures):
    (process,) = forked_ranks.Job().start(1, train_that_hangs, {"max_iters": 1000})
    wait_for((OUT / "hanging").exists)
    os.kill(process.pid, signal.SIGINT)
    process.join(0.5)
    assert process.is_alive()  # the first one lets the step come to its end
    while process.is_alive():
        os.kill(process.pid, signal.SIGINT)  # two that come together count as one
        process.join(0.5)
    assert forked_ranks.statuses([process]) == [130]
    require_readable()
    (OUT / "hanging").unlink()
    assert end_of(train, {"max_iters": 12, "lr_decay_iters": 12}) == 0
    assert what_counts()[2] == whole[0][2]
    figures["interrupted twice"] += 1


def train_that_hangs(options):
    """A step after the second evaluation never ends."""
    pass

    step = loop.train_step

    def endless(state, forward, batch):
        if state.step == 9:
            (OUT / "hanging").touch()
            while True:
                time.sleep(0.01)  # a step that hangs
        step(state, forward, batch)

    loop.train_step = endless
    train({**options, "lr_decay_iters": 12})


def flipped(content, bit):
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize("count", [400, pytest.param(20_000, marks=pytest.mark.slow)])
def test_a_flipped_bit_in_a_checkpoint_is_told_of(whole, tmp_path, count, figures):
    content = whole[0][2]["last"]
    path, bits = tmp_path / "flipped.safetensors", random.Random(count)
    for _ in range(count):
        path.write_bytes(flipped(content, bits.randrange(8 * len(content))))
        with pytest.raises(ng.UserError, match="damaged|not written by this program|of another format"):
            checkpoint_file.read_checkpoint(path)
    figures["bits flipped"] += count


def test_a_flipped_bit_in_the_tokens_is_told_of(text_file, figures):
    dataset = ng.prepare("bottles.txt")
    ng.train(dataset, **{**TINY, "out_dir": OUT})
    bits = random.Random(0)
    for name in ("train.bin", "val.bin"):
        path = dataset.path / name
        content = path.read_bytes()
        for _ in range(20):
            path.write_bytes(flipped(content, bits.randrange(8 * len(content))))
            for call in (
                lambda: ng.train(dataset, **{**TINY, "out_dir": "runs/new"}),
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
    figures["bits flipped"] += 40


def in_place(path, content):
    with path.open("r+b") as file:
        file.write(content)


def replaced(path, content):
    other = path.with_suffix(".other")
    other.write_bytes(content)
    other.replace(path)


def truncated(path, content):
    os.truncate(path, len(content) // 2)


def touched(path, content):
    os.utime(path)


@pytest.mark.parametrize("name", ["train.bin", "val.bin"])
@pytest.mark.parametrize("change", [in_place, truncated])
def test_tokens_that_change_under_a_run_end_it_and_what_was_saved_stands(text_file, change, name, figures):
    path = ng.prepare("bottles.txt").path / name
    content = path.read_bytes()
    process = started({"max_iters": 10**6, "lr_decay_iters": 12})
    wait_for((OUT / "last.safetensors").exists)
    change(path, flipped(content, 100))
    assert forked_ranks.statuses([process]) == [1]
    assert re.match(r"UserError: the tokens in .*bottles are not those of the text", Path("rank0.error").read_text())
    require_readable()
    ng.prepare("bottles.txt", overwrite=True)
    end = checkpoint_file.read_checkpoint(OUT / "last.safetensors").metadata.step + 5
    assert end_of(train, {"max_iters": end, "lr_decay_iters": 12}) == 0
    after = what_counts()
    discard()
    assert end_of(train, {"max_iters": end, "lr_decay_iters": 12}) == 0
    assert what_counts()[2] == after[2]
    figures["data changed under a run"] += 1


@pytest.mark.parametrize("change", [in_place, truncated])
def test_tokens_that_changed_right_before_they_are_read_are_not_used(text_file, change, figures):
    data = ng.prepare("bottles.txt")
    path = data.path / "train.bin"
    with verification.open_verified(data) as (train_tokens, val_tokens):
        assert np.array_equal(train_tokens[3:40], data.train[3:40])
        assert np.array_equal(val_tokens[len(val_tokens) - 5 :], data.val[-5:])
        change(path, flipped(path.read_bytes(), 100))
        os.utime(path)  # the system's clock may stand still for some milliseconds
        for part in (slice(3, 40), slice(len(data.train) - 5, None)):
            with pytest.raises(ng.UserError, match="are not those of the text"):
                train_tokens[part]
    figures["data changed under a run"] += 1


def test_tokens_that_changed_and_were_mended_in_a_new_file_are_not_used(text_file, figures):
    """What a run has open is the damaged file, whatever has its name by now."""
    data = ng.prepare("bottles.txt")
    path = data.path / "train.bin"
    content = path.read_bytes()
    with verification.open_verified(data) as (train_tokens, _):
        assert len(train_tokens[5:3]) == 0
        in_place(path, flipped(content, 100))
        os.utime(path)
        replaced(path, content)
        for _ in range(2):
            with pytest.raises(ng.UserError, match="are not those of the text"):
                train_tokens[3:40]
        path.unlink()
        with pytest.raises(ng.UserError, match="are not those of the text"):
            train_tokens[3:40]
    figures["data changed under a run"] += 1


@pytest.mark.parametrize("change", [replaced, touched])
def test_tokens_that_only_seem_to_change_do_not_end_a_run(text_file, change, figures):
    path = ng.prepare("bottles.txt").path / "train.bin"
    content = path.read_bytes()
    process = started({"max_iters": 10**6})
    wait_for((OUT / "last.safetensors").exists)
    change(path, flipped(content, 100))
    steps = len(ng.Run(OUT).metrics)
    wait_for(lambda: len(ng.Run(OUT).metrics) > steps + 5)
    os.kill(process.pid, signal.SIGTERM)
    assert forked_ranks.statuses([process]) == [130]
    replaced(path, content)
    stopped = checkpoint_file.read_checkpoint(OUT / "last.safetensors")
    weights = {name: tensor.clone() for name, tensor in stopped.tensors.items()}
    discard()
    assert end_of(train, {"max_iters": stopped.metadata.step, "lr_decay_iters": 10**6}) == 0
    undisturbed = checkpoint_file.read_checkpoint(OUT / "last.safetensors").tensors
    assert all(torch.equal(tensor, undisturbed[name]) for name, tensor in weights.items())
    figures["data changed under a run"] += 1
