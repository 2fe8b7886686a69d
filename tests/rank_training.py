"""A training of a moment on bottles.txt, which ranks and single processes run, and comparisons of what they wrote."""

from pathlib import Path
from typing import Any

import pytest
from tiny import TINY_GPT

import nanogpt_lite as ng

OPTIONS: dict[str, Any] = {
    **TINY_GPT,
    "batch_size": 8,
    "max_iters": 12,
    "eval_interval": 4,
    "log_interval": 1,
    "learning_rate": 0.01,
}


def train(options: dict[str, Any]) -> None:
    ng.train("bottles.txt", **{**OPTIONS, **options})


def records(out_dir: str, kind: str) -> list[dict[str, Any]]:
    """The records of one kind in a run's metrics file."""
    return [record for record in ng.Run(Path(out_dir)).metrics if record["kind"] == kind]


def losses(out_dir: str) -> tuple[dict[int, Any], dict[int, Any]]:
    """The training loss of each logged step, and the train and val loss of each evaluation, by step."""
    steps = {record["step"]: record["loss"] for record in records(out_dir, "step")}
    return steps, {record["step"]: (record["train_loss"], record["val_loss"]) for record in records(out_dir, "eval")}


def require_same_losses(out_dir: str, expected: str, tolerance: float = 1e-5) -> None:  # the design promises 1e-4
    for actual_losses, expected_losses in zip(losses(out_dir), losses(expected), strict=True):
        assert sorted(actual_losses) == sorted(expected_losses)
        for step, value in expected_losses.items():
            assert actual_losses[step] == pytest.approx(value, abs=tolerance), step
