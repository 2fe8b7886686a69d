"""Trainings with nanogpt_lite and with nanoGPT, of which the time of a step, the losses and the memory are known.

A step is timed between two lines of the log, at which both programs synchronize with the GPU. Evaluations, start-up and
compilation are left out for both: the time of a step is the median.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

from harness import Harness, evaluations

import nanogpt_lite as ng


@dataclass
class TrainingLog:
    """What the log of a training holds."""

    step_times: list[float] = field(default_factory=list)  # seconds per step, between two lines of the log
    evaluations: list[tuple[int, float]] = field(default_factory=list)  # step and val loss
    tokens_per_step: int = 0
    memory: float = 0.0  # MB: the peak on the GPU; without one, of the process

    @property
    def step_time(self) -> float:
        """The median seconds per step. `ExternalError` if the log has none."""
        if not self.step_times:
            raise ng.ExternalError("the log of the training has no times of steps")
        return median(self.step_times)

    @property
    def tokens_per_second(self) -> float:
        """From the median time of a step. `ExternalError` if the log has no times of steps."""
        return self.tokens_per_step / self.step_time

    @property
    def seconds(self) -> float:
        """The seconds of all steps until the last evaluation. `ExternalError` if there is none."""
        return self._last()[0] * self.step_time

    @property
    def last_loss(self) -> float:
        """The val loss of the last evaluation. `ExternalError` if there is none."""
        return self._last()[1]

    def best(self) -> tuple[int, float]:
        """The step and the val loss of the best evaluation. `ExternalError` if there is none."""
        return min(self.evaluations, key=lambda evaluation: evaluation[1], default=None) or self._last()

    def seconds_to(self, goal: float) -> float | None:
        """The seconds of all steps until the first evaluation at or below a loss; None if there is none."""
        step = next((step for step, loss in self.evaluations if loss <= goal), None)
        return None if step is None else step * self.step_time

    def _last(self) -> tuple[int, float]:
        if not self.evaluations:
            raise ng.ExternalError("the log of the training has no evaluations")
        return self.evaluations[-1]


def train_lite(harness: Harness, preset: str, options: Sequence[str]) -> TrainingLog:
    """Train with a preset of nanogpt_lite. `ExternalError` if that fails."""
    run = ng.Run(harness.lite_dir / "runs" / preset)
    where = ["--device", harness.device, "--out_dir", str(run.out_dir), "--overwrite"]
    measured = harness.probe("train_lite", "--preset", preset, *options, *where, cwd=harness.lite_dir)
    clock = [(record["step"], record["seconds"]) for record in run.metrics if record["kind"] == "step"]
    step_times = [(end - begin) / (last - first) for (first, begin), (last, end) in pairwise(clock)]
    losses = [(record["step"], record["val_loss"]) for record in evaluations(run)]
    return TrainingLog(step_times, losses, run.metrics[0]["tokens_per_step"], peak_memory(measured))


def train_nanogpt(harness: Harness, options: Sequence[str]) -> TrainingLog:
    """Train nanoGPT's recipe. `ExternalError` if that fails."""
    path = harness.folder / "nanogpt_log.json"
    words = ["config/train_shakespeare_char.py", f"--device={harness.device}", *options]
    measured = harness.probe("train_nanogpt", path, *words)
    log = parse_nanogpt(json.loads(path.read_text(encoding="utf-8")))
    log.memory = peak_memory(measured)
    return log


def parse_nanogpt(lines: Iterable[tuple[float, str]]) -> TrainingLog:
    """The log of nanoGPT from the lines that it printed, each with the time in seconds."""
    log = TrainingLog()
    last: tuple[int, float] | None = None  # the iteration and the time of the line before
    for seconds, line in lines:
        if match := re.match(r"step (\d+): train loss .*, val loss ([\d.]+)", line):
            log.evaluations.append((int(match[1]), float(match[2])))
            last = None  # the time until the next line includes an evaluation
        elif match := re.match(r"iter (\d+): loss", line):
            number = int(match[1])
            if last:
                log.step_times.append((seconds - last[1]) / (number - last[0]))
            last = (number, seconds)
        elif match := re.match(r"tokens per iteration will be: ([\d,]+)", line):
            log.tokens_per_step = int(match[1].replace(",", ""))
    return log


def peak_memory(measured: dict[str, float]) -> float:
    """The peak memory in MB of what `Harness.probe` has measured: of the GPU, without one that of the process."""
    return measured["device_memory"] or measured["memory"]
