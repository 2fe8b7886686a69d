"""A small run in a process of its own, to which faults happen, and what is on disk then."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import forked_ranks
import pytest
import safetensors.torch
from conftest import wait_for
from tiny import TINY_GPT

import nanogpt_lite as ng
from nanogpt_lite.api import pipeline
from nanogpt_lite.checkpoint import checkpoint_file
from nanogpt_lite.tracking import metrics_file

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
    # as `ng.train` does, and unlike `ng.training`, signals are requests to stop between two records too
    for record in pipeline.training_to_end("bottles.txt", **{**OPTIONS, "out_dir": OUT, **options}, **resume):
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


def delete_run():
    for path in OUT.iterdir():
        path.unlink()


def require_readable():
    """Right after a fault every file is complete or does not exist."""
    for path in OUT.glob("*.safetensors"):
        checkpoint_file.read_checkpoint(path)
    for record in metrics_file.read_metrics(OUT / "metrics.jsonl"):
        assert isinstance(record["step"], int)


@pytest.fixture
def undisturbed(text_file):
    """The reproducible parts of an undisturbed run, and the kill points that it reached."""
    ng.prepare("bottles.txt")
    assert exit_status_of(train, {}, None, True) == 0
    expected = reproducible_parts()
    delete_run()
    yield expected, json.loads(Path("points.json").read_text(encoding="utf-8"))
    forked_ranks.kill_all()
