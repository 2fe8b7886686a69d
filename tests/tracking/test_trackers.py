"""Trackers get the scalars of the records; a tracker that fails or is not installed does not stop training."""

import json
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import TINY_GPT

import nanogpt_lite as ng
from nanogpt_lite.cli.main import main
from nanogpt_lite.tracking import trackers
from nanogpt_lite.tracking.records import EvalRecord, SampleRecord
from nanogpt_lite.tracking.trackers import BestEffortSink

OPTIONS: dict[str, Any] = {**TINY_GPT, "batch_size": 2, "eval_interval": 4, "log_interval": 2, "out_dir": "runs/a"}


def scalar_series(run, kind, key):
    return [(record["step"], pytest.approx(record[key])) for record in run.metrics if record["kind"] == kind]


def test_tensorboard_shows_each_scalar_once_after_a_resume(text_file):
    ng.train("bottles.txt", max_iters=6, tensorboard=True, sample_interval=4, **OPTIONS)
    options = {**OPTIONS, "out_dir": "runs/b", "max_iters": 12, "keep_every": 4}
    run = ng.train("bottles.txt", **options, tensorboard=True)
    # as after a kill: the steps after the fourth are repeated
    (run.out_dir / "step_000004.safetensors").replace(run.out_dir / "last.safetensors")
    ng.train(out_dir="runs/b", init_from="resume", tensorboard=True)
    events = EventAccumulator("runs/b").Reload()
    expected = {
        "train/loss": ("step", "loss"),
        "train/learning_rate": ("step", "learning_rate"),
        "train/grad_norm": ("step", "grad_norm"),
        "train/tokens_per_second": ("step", "tokens_per_second"),
        "val/loss": ("eval", "val_loss"),
        "val/best_loss": ("eval", "best_val_loss"),
    }
    assert set(events.Tags()["scalars"]) == set(expected)
    for tag, (kind, key) in expected.items():
        assert [(event.step, event.value) for event in events.Scalars(tag)] == scalar_series(run, kind, key)
    assert EventAccumulator("runs/a").Reload().Tags()["tensors"] == ["sample/text_summary"]


def test_the_loss_of_the_network_beside_an_n_gram_expert_is_tracked():
    losses = {"train_loss": 2.0, "val_loss": 1.5, "best_val_loss": 1.5}
    record = EvalRecord(step=3, is_best=True, seconds=0.5, network_val_loss=1.7, **losses)
    assert trackers.scalars(record) == {"val/loss": 1.5, "val/best_loss": 1.5, "val/network_loss": 1.7}


class FakeRun:
    def __init__(self, **arguments):
        self.arguments, self.logged, self.finished = arguments, [], False

    def define_metric(self, name, step_metric):
        assert (name, step_metric) == ("*", "step")

    def log(self, values):
        self.logged.append(values)

    def finish(self):
        self.finished = True


def test_wandb_gets_the_scalars_and_resume_continues_its_run(text_file, monkeypatch):
    runs = []
    fake = SimpleNamespace(init=lambda **arguments: runs.append(FakeRun(**arguments)) or runs[-1], Settings=dict)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    options: dict[str, Any] = {"wandb_log": True, "wandb_project": "bottles"}
    run = ng.train("bottles.txt", max_iters=4, sample_interval=4, **options, **OPTIONS)
    ng.train(out_dir="runs/a", init_from="resume", max_iters=8, **options)
    ng.train("bottles.txt", max_iters=4, wandb_run_name="b", overwrite=True, **options, **OPTIONS)
    first, second, third = runs
    assert (first.arguments["project"], first.arguments["name"], third.arguments["name"]) == ("bottles", "a", "b")
    assert first.arguments["config"]["n_embd"] == 8
    assert first.arguments["resume"] == "allow"
    assert first.arguments["settings"]["init_timeout"] <= 30
    assert first.arguments["id"] == second.arguments["id"] != third.arguments["id"]
    assert all(one.finished for one in runs)
    logged = [(one["step"], one["val/loss"]) for one in third.logged if "val/loss" in one]
    assert logged == scalar_series(run, "eval", "val_loss")
    assert [(one["step"], len(one["sample"])) for one in first.logged if "sample" in one] == [(4, 200)]


@pytest.mark.slow
def test_real_wandb_writes_offline(text_file, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    ng.train("bottles.txt", max_iters=4, wandb_log=True, **OPTIONS)
    (written,) = text_file.parent.glob("runs/a/wandb/offline-run-*/*.wandb")
    deadline = time.monotonic() + 30
    while b"val/loss" not in written.read_bytes():
        assert time.monotonic() < deadline, "W&B wrote no val/loss"
        time.sleep(0.05)  # W&B's own process writes it, maybe after `finish` has returned


@pytest.mark.parametrize(
    ("missing", "option", "extra"),
    [("wandb", "wandb_log", "wandb"), ("torch.utils.tensorboard", "tensorboard", "tensorboard")],
)
def test_missing_tracker_is_one_warning_and_training_completes(text_file, monkeypatch, capsys, missing, option, extra):
    monkeypatch.setitem(sys.modules, missing, None)
    arguments = [f"--{name}={value}" for name, value in {**OPTIONS, option: True, "max_iters": 4}.items()]
    assert main(["train", "--dataset=bottles.txt", *arguments]) == 0
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert f"continuing without {extra}" in warning
    assert f"pip install 'nanogpt-lite[{extra}]'" in warning
    assert ng.Run(text_file.parent / "runs/a").metrics[-1]["kind"] == "done"


@pytest.mark.parametrize("failing", ["make", "write", "close"])
def test_failing_tracker_is_reported_once(failing):
    warnings = []

    class Sink:
        def write(self, record):
            if failing == "write":
                raise OSError("no\nspace")

        def close(self):
            if failing == "close":
                raise OSError("no\nspace")

    def make():
        if failing == "make":
            raise OSError("no\nspace")
        return Sink()

    sink = BestEffortSink("tracker", make, warnings.append)
    for step in range(3):
        sink.write(SampleRecord(step=step, text="a"))
    sink.close()
    assert warnings == ["warning: continuing without tracker (OSError: no space)"]


def test_trackers_are_not_enabled_again_on_resume(text_file):
    ng.train("bottles.txt", max_iters=4, tensorboard=True, **OPTIONS)
    assert json.loads((text_file.parent / "runs/a/config.json").read_text())["config"]["tensorboard"] is True
    before = sorted(text_file.parent.glob("runs/a/events*"))
    ng.train(out_dir="runs/a", init_from="resume", max_iters=8)
    assert sorted(text_file.parent.glob("runs/a/events*")) == before
