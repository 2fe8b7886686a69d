"""nanogpt_lite and nanoGPT in turn on one GPU: training and sampling.

    benchmarks/gpu.sh nanoGPT                              # this, the GPU tests and scaling.py, within 8 minutes
    python benchmarks/on_gpu.py --nanogpt nanoGPT          # only this
    python benchmarks/on_gpu.py --nanogpt nanoGPT --device cpu --short   # a quick check without a GPU

Training time is the number of steps times the median time of a step. A step is timed between two lines of the log, at
which both programs synchronize with the GPU. Evaluations, start-up and compilation are left out for both.
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

from harness import Harness, evaluations, require_clone, save_networks, set_up
from table import Row, describe_environment, exit_status, markdown, save

import nanogpt_lite as ng

OUT = Path(__file__).resolve().parent / "results" / "on_gpu"
SEEDS = 5
SPEED_STEPS = 400  # of the run that only measures the speed of nanoGPT's recipe
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
    note=f"of {SEEDS} seeds (fewer if the time was over): evaluations of --preset modern, chosen on the val split; "
    "nanoGPT's best estimate of one run",
    most=1.38,
)
LAST = Row(part="gpu", name="last val loss, mean", unit="nats", note="of the last evaluations of the same runs")
WHOLE = Row(part="gpu", name="seconds of training in all", unit="s", note="the median of these runs", least_ratio=1)
SAMPLING = Row(
    part="gpu",
    name="ten samples of 500 tokens",
    unit="tokens/s",
    note="10.65M parameters in bfloat16; at once in nanogpt_lite, one after the other in nanoGPT",
    least_ratio=50,
)
ROWS = (SPEED, SPRINT, BEST, LAST, WHOLE, SAMPLING)


@dataclass
class TrainingLog:
    """What the log of a training holds."""

    step_times: list[float] = field(default_factory=list)  # seconds per step, between two lines of the log
    evaluations: list[tuple[int, float]] = field(default_factory=list)  # step and val loss

    @property
    def step_time(self) -> float:
        """The median seconds per step."""
        return median(self.step_times)

    def best(self) -> tuple[int, float]:
        """The step and the val loss of the best evaluation."""
        return min(self.evaluations, key=lambda evaluation: evaluation[1])


def main() -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(description="Compare nanogpt_lite with nanoGPT on a GPU.", allow_abbrev=False)
    parser.add_argument("--nanogpt", type=Path, required=True, help="a clone of nanoGPT, which is not changed")
    parser.add_argument("--device", default="cuda", help="(default: %(default)s)")
    parser.add_argument("--short", action="store_true", help="a tiny network and few steps, as a quick check")
    parser.add_argument(
        "--seconds", type=float, default=280, help="start no further seed after this time (default: 280)"
    )
    parser.add_argument("--out", type=Path, default=OUT, help="write OUT.json and OUT.md")
    args = parser.parse_args()
    return exit_status(lambda: measure(args))


def measure(args: argparse.Namespace) -> None:
    """Set up both programs and measure every row."""
    require_clone(args.nanogpt)
    with tempfile.TemporaryDirectory(prefix="on_gpu_") as folder:
        tabulate(set_up(Path(folder), args.nanogpt, device=args.device), args)


def tabulate(harness: Harness, args: argparse.Namespace) -> None:
    """Measure the rows. The table is saved after each run; the last seeds are left out when the time is over."""
    deadline = time.monotonic() + args.seconds
    compiled = [] if args.short else ["--compile", "True"]
    lengths = ["--max_iters", "30"] if args.short else []
    nanogpt_log = train_nanogpt(harness, args.short)
    speed_steps = ["--max_iters", "30" if args.short else str(SPEED_STEPS), "--eval_interval", "10000"]
    speed_log, tokens = train_lite(harness, "shakespeare_char", [*compiled, *speed_steps], args.short)
    best_step, best_loss = nanogpt_log.best()
    lite = {SPEED.name: tokens / speed_log.step_time}
    nanogpt = {
        SPEED.name: tokens / nanogpt_log.step_time,
        SPRINT.name: best_step * nanogpt_log.step_time,
        BEST.name: best_loss,
        LAST.name: nanogpt_log.evaluations[-1][1],
        WHOLE.name: nanogpt_log.evaluations[-1][0] * nanogpt_log.step_time,
    }
    lite[SAMPLING.name], nanogpt[SAMPLING.name] = sample(harness)
    command = ["python", "benchmarks/on_gpu.py", "--nanogpt", "nanoGPT", "--device", args.device]
    report = describe_environment(shlex.join([*command, *(["--short"] if args.short else [])]), args.nanogpt)
    report["machine"]["device"] = ng.Run(harness.lite_dir / "runs" / "shakespeare_char").metrics[0]["device"]
    logs: list[TrainingLog] = []
    seeds = 1 if args.short else SEEDS
    while True:
        report["runs"] = [{"step": log.step_time, "evaluations": log.evaluations} for log in logs]
        report["spread"] = stdev(log.best()[1] for log in logs) if len(logs) > 1 else 0.0
        values = {**lite, **summarize(logs)}
        report["rows"] = [row.line([values], [nanogpt]) for row in ROWS if row.name in values]
        save(report, markdown(report), args.out)
        if len(logs) == seeds or (logs and time.monotonic() > deadline):
            break
        logs.append(train_lite(harness, "modern", [*compiled, *lengths, "--seed", str(len(logs))], args.short)[0])
    print(markdown(report), end="")


def summarize(logs: list[TrainingLog]) -> dict[str, float]:
    """The values of the rows about --preset modern, from its runs so far."""
    if not logs:
        return {}
    goal_steps = [next((step for step, loss in log.evaluations if loss <= GOAL), None) for log in logs]
    sprints = [step * log.step_time for step, log in zip(goal_steps, logs, strict=True) if step]
    return {
        **({SPRINT.name: median(sprints)} if len(sprints) == len(logs) else {}),
        BEST.name: mean(log.best()[1] for log in logs),
        LAST.name: mean(log.evaluations[-1][1] for log in logs),
        WHOLE.name: median(log.evaluations[-1][0] * log.step_time for log in logs),
    }


def train_lite(harness: Harness, preset: str, options: list[str], short: bool) -> tuple[TrainingLog, int]:
    """Train with a preset of nanogpt_lite; also the tokens per step."""
    tiny = SHORT if short else []
    _, run = harness.train(preset, "--preset", preset, *tiny, *options, "--log_interval", "10")
    records = run.metrics
    clock = [(r["step"], r["seconds"]) for r in records if r["kind"] == "step"]
    step_times = [(end - begin) / (last - first) for (first, begin), (last, end) in pairwise(clock)]
    losses = [(record["step"], record["val_loss"]) for record in evaluations(run)]
    return TrainingLog(step_times, losses), records[0]["tokens_per_step"]


def train_nanogpt(harness: Harness, short: bool) -> TrainingLog:
    """Train nanoGPT's recipe; a step is timed by when its lines are printed."""
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
    log, last = TrainingLog(), (0, 0.0)  # the iteration and the time of the last line
    with tempfile.TemporaryFile("w+", encoding="utf-8") as stderr:
        command, cwd = [sys.executable, *words], harness.nanogpt_dir
        child = subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True)
        assert child.stdout is not None
        for line in child.stdout:
            now = time.perf_counter()
            if match := re.match(r"step (\d+): train loss .*, val loss ([\d.]+)", line):
                log.evaluations.append((int(match[1]), float(match[2])))
                last = (0, 0.0)  # the time until the next line includes an evaluation
            elif match := re.match(r"iter (\d+): loss", line):
                number = int(match[1])
                if last[1]:
                    log.step_times.append((now - last[1]) / (number - last[0]))
                last = (number, now)
        if child.wait():
            stderr.seek(0)
            raise ng.ExternalError(f"nanoGPT's train.py ended with status {child.returncode}: {stderr.read()[-300:]}")
    return log


def sample(harness: Harness) -> tuple[float, float]:
    """Tokens per second of ten samples in nanogpt_lite and in nanoGPT, with the same random weights."""
    lite, nanogpt = save_networks(harness)
    return (
        harness.probe("sample_lite", lite, "10", "bfloat16", harness.device)["tokens_per_second"],
        harness.probe("sample_nanogpt", nanogpt, "2", harness.device)["tokens_per_second"],
    )


if __name__ == "__main__":
    sys.exit(main())
