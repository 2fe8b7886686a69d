"""This program and nanoGPT in turn on one GPU: training, and drawing text.

    benchmarks/gpu.sh nanoGPT                              # this, the tests and the scaling, within 8 minutes
    python benchmarks/on_gpu.py --nanogpt nanoGPT          # this alone
    python benchmarks/on_gpu.py --nanogpt nanoGPT --device cpu --short   # whether it works, where there is no GPU

Seconds of training are steps times the time of a step, the median over the run's stretches between two lines of its
log, at which the GPU is waited for; evaluations, start-up and compilation are left out for both programs.
"""

import argparse
import re
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import mean, median, stdev

from harness import COMMAND, Harness, networks, require_clone, set_up
from table import Row, circumstances, exit_status, markdown, save

import nanogpt_lite as ng

OUT = Path(__file__).resolve().parent / "results" / "on_gpu"
SEEDS = 5
SPEED_STEPS = 400  # of the run that only tells how fast nanoGPT's recipe is here
GOAL = 1.4697  # nanoGPT's README
SHORT = ["--n_layer", "1", "--n_embd", "48", "--block_size", "32", "--batch_size", "4", "--eval_interval", "10"]

SPEED = Row(
    part="gpu",
    name="shakespeare_char, training",
    unit="tokens/s",
    note="compiled in both, from the median time of a step",
    least_ratio=1.5,
)
SPRINT = Row(
    part="gpu",
    name=f"seconds of training to {GOAL}",
    unit="s",
    note="in nanogpt_lite --preset modern until an evaluation of the whole val split is at or below it; in nanoGPT its "
    "recipe until its own best evaluation, from 200 random batches",
    least_ratio=10,
)
BEST = Row(
    part="gpu",
    name="best val loss, mean",
    unit="nats",
    note=f"of {SEEDS} seeds (or those there was time for): evaluations of --preset modern, chosen on the val split; "
    "nanoGPT's best estimate of one run",
    most=1.38,
)
LAST = Row(part="gpu", name="last val loss, mean", unit="nats", note="of the last evaluations of the same runs")
WHOLE = Row(part="gpu", name="seconds of training in all", unit="s", note="of these runs, the median", least_ratio=1)
SAMPLING = Row(
    part="gpu",
    name="ten samples of 500 tokens",
    unit="tokens/s",
    note="10.65M parameters in bfloat16; at once in nanogpt_lite, one after the other in nanoGPT",
    least_ratio=50,
)
ROWS = (SPEED, SPRINT, BEST, LAST, WHOLE, SAMPLING)


@dataclass
class Seen:
    """What a training printed, or wrote: the seconds between lines of its log, a step; its evaluations."""

    steps: list[float] = field(default_factory=list)
    evaluations: list[tuple[int, float]] = field(default_factory=list)

    @property
    def step(self) -> float:
        """The median time of a step."""
        return median(self.steps)

    def best(self) -> tuple[int, float]:
        """The lowest evaluation, and its step."""
        return min(self.evaluations, key=lambda found: found[1])


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description="Compare this program with nanoGPT on a GPU.", allow_abbrev=False)
    parser.add_argument("--nanogpt", type=Path, required=True, help="a clone of nanoGPT; it is only read")
    parser.add_argument("--device", default="cuda", help="(default: %(default)s)")
    parser.add_argument("--short", action="store_true", help="a tiny network and few steps: does it work?")
    parser.add_argument("--seconds", type=float, default=280, help="then no further seed begins (default: 280)")
    parser.add_argument("--out", type=Path, default=OUT, help="writes OUT.json, OUT.md")
    given = parser.parse_args()
    return exit_status(lambda: measure(given))


def measure(given: argparse.Namespace) -> None:
    """Every row, in turn."""
    require_clone(given.nanogpt)
    with tempfile.TemporaryDirectory(prefix="on_gpu_") as folder:
        tabulate(set_up(Path(folder), given.nanogpt, device=given.device), given)


def tabulate(harness: Harness, given: argparse.Namespace) -> None:
    """The rows; the table is written after each part, and the last seeds are left out if time is up."""
    deadline = time.monotonic() + given.seconds
    compiled = [] if given.short else ["--compile", "True"]
    lengths = ["--max_iters", "30"] if given.short else []
    seen = train_theirs(harness, given.short)
    speed_steps = ["--max_iters", "30" if given.short else str(SPEED_STEPS), "--eval_interval", "10000"]
    speed, tokens = train_ours(harness, "shakespeare_char", [*compiled, *speed_steps], given.short)
    best_step, best = seen.best()
    ours = {SPEED.name: tokens / speed.step}
    theirs = {
        SPEED.name: tokens / seen.step,
        SPRINT.name: best_step * seen.step,
        BEST.name: best,
        LAST.name: seen.evaluations[-1][1],
        WHOLE.name: seen.evaluations[-1][0] * seen.step,
    }
    ours[SAMPLING.name], theirs[SAMPLING.name] = sample(harness)
    command = ["python", "benchmarks/on_gpu.py", "--nanogpt", "nanoGPT", "--device", given.device]
    report = circumstances(shlex.join([*command, *(["--short"] if given.short else [])]), given.nanogpt)
    report["machine"]["device"] = ng.Run(harness.ours / "runs" / "shakespeare_char").metrics[0]["device"]
    runs: list[Seen] = []
    seeds = 1 if given.short else SEEDS
    while True:
        report["runs"] = [{"step": run.step, "evaluations": run.evaluations} for run in runs]
        report["spread"] = stdev(run.best()[1] for run in runs) if len(runs) > 1 else 0.0
        values = {**ours, **summary(runs)}
        report["rows"] = [row.line([values], [theirs]) for row in ROWS if row.name in values]
        save(report, markdown(report), given.out)
        if len(runs) == seeds or (runs and time.monotonic() > deadline):
            break
        runs.append(train_ours(harness, "modern", [*compiled, *lengths, "--seed", str(len(runs))], given.short)[0])
    print(markdown(report), end="")


def summary(runs: list[Seen]) -> dict[str, float]:
    """What the rows about --preset modern are of its runs so far."""
    if not runs:
        return {}
    reached = [next((step for step, loss in run.evaluations if loss <= GOAL), None) for run in runs]
    sprints = [step * run.step for step, run in zip(reached, runs, strict=True) if step]
    found = {SPRINT.name: median(sprints)} if len(sprints) == len(runs) else {}
    return {
        **found,
        BEST.name: mean(run.best()[1] for run in runs),
        LAST.name: mean(run.evaluations[-1][1] for run in runs),
        WHOLE.name: median(run.evaluations[-1][0] * run.step for run in runs),
    }


def train_ours(harness: Harness, preset: str, options: list[str], short: bool) -> tuple[Seen, int]:
    """A preset's run, and the tokens of its steps."""
    out_dir = harness.ours / "runs" / preset
    more = ["--device", harness.device, "--log_interval", "10", "--out_dir", str(out_dir), "--overwrite"]
    tiny = SHORT if short else []
    harness.call(harness.ours, *COMMAND, "train", "--preset", preset, *tiny, *options, *more)
    records = ng.Run(out_dir).metrics
    clock = [(r["step"], r["seconds"]) for r in records if r["kind"] == "step"]
    steps = [(end - begin) / (last - first) for (first, begin), (last, end) in pairwise(clock)]
    evaluations = [(r["step"], r["val_loss"]) for r in records if r["kind"] == "eval"]
    return Seen(steps, evaluations), records[0]["tokens_per_step"]


def train_theirs(harness: Harness, short: bool) -> Seen:
    """NanoGPT's recipe, with the time at which each line came."""
    words = ["train.py", "config/train_shakespeare_char.py", f"--device={harness.device}"]
    if short:
        words += [
            "--compile=False",
            "--eval_iters=2",
            "--max_iters=30",
            "--lr_decay_iters=200",
            "--n_head=6",
            "--log_interval=2",
        ]
        words += [f"{name}={value}" for name, value in zip(SHORT[::2], SHORT[1::2], strict=True)]
    environment = {**harness.environment, "PYTHONUNBUFFERED": "1"}
    seen, last = Seen(), (0, 0.0)
    with tempfile.TemporaryFile("w+") as complained:
        command, there = [sys.executable, *words], harness.theirs
        child = subprocess.Popen(
            command, cwd=there, env=environment, stdout=subprocess.PIPE, stderr=complained, text=True
        )
        assert child.stdout is not None
        for line in child.stdout:
            now = time.perf_counter()
            if found := re.match(r"step (\d+): train loss .*, val loss ([\d.]+)", line):
                seen.evaluations.append((int(found[1]), float(found[2])))
                last = (0, 0.0)  # the next stretch has an evaluation in it
            elif found := re.match(r"iter (\d+): loss", line):
                number = int(found[1])
                if last[1]:
                    seen.steps.append((now - last[1]) / (number - last[0]))
                last = (number, now)
        if child.wait():
            complained.seek(0)
            raise ng.ExternalError(
                f"nanoGPT's train.py ended with status {child.returncode}: {complained.read()[-300:]}"
            )
    return seen


def sample(harness: Harness) -> tuple[float, float]:
    """Tokens per second of ten samples, by networks with the same random weights."""
    ours, theirs = networks(harness)
    return (
        harness.probe("sample_ours", ours, "10", "bfloat16", harness.device)["tokens_per_second"],
        harness.probe("sample_theirs", theirs, "2", harness.device)["tokens_per_second"],
    )


if __name__ == "__main__":
    sys.exit(main())
