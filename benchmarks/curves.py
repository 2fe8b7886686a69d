"""Plot of the val loss over training time: the CPU recipes of nanogpt_lite and of nanoGPT.

    python benchmarks/curves.py --nanogpt nanoGPT

The time is that of the steps, without evaluations and start-up. nanogpt_lite evaluates the whole val split, nanoGPT
estimates the loss from 20 random batches. Run nothing else on the machine meanwhile.
"""

import argparse
import re
import shlex
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from harness import README_COMMAND, RECIPE_STEPS, Harness, evaluations, require_clone, set_up
from table import describe_environment, exit_status, machine_line, save

OUT = Path(__file__).resolve().parent / "results" / "curves"
NANOGPT_EVAL_INTERVAL = 100
NANOGPT_LABEL = "nanoGPT, its recipe for a CPU (estimates from 20 batches)"

Curve = list[tuple[float, float]]
"""Pairs of seconds and val loss."""


def main() -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(description="Plot the val loss over training time.", allow_abbrev=False)
    parser.add_argument("--nanogpt", type=Path, required=True, help="a clone of nanoGPT, which is not changed")
    parser.add_argument("--out", type=Path, default=OUT, help="write OUT.json, OUT.md and OUT.png")
    args = parser.parse_args()
    return exit_status(lambda: measure(args.nanogpt, args.out))


def measure(clone: Path, out: Path) -> None:
    """Train with each recipe once, and save the plot."""
    require_clone(clone)
    report = describe_environment(shlex.join(["python", "benchmarks/curves.py", "--nanogpt", "nanoGPT"]), clone)
    with tempfile.TemporaryDirectory(prefix="curves_") as folder:
        harness = set_up(Path(folder), clone)
        report["curves"] = {
            NANOGPT_LABEL: train_nanogpt(harness),
            "nanogpt_lite, the same recipe": train_lite(harness, "cpu", 100),
            "nanogpt_lite, modern-cpu": train_lite(harness, "modern-cpu", 25),
        }
    save(report, f"{machine_line(report)}\n", out)
    save_plot(report["curves"], report["machine"], out.with_name(f"{out.name}.png"))


def train_lite(harness: Harness, preset: str, interval: int) -> Curve:
    """The curve of a preset of nanogpt_lite."""
    _, run = harness.train(preset, "--preset", preset, "--eval_interval", str(interval))
    return [(record["seconds"], record["val_loss"]) for record in evaluations(run)]


def train_nanogpt(harness: Harness) -> Curve:
    """The curve of nanoGPT's recipe. The time of an iteration with an evaluation is replaced by the median."""
    length = [f"--max_iters={RECIPE_STEPS}", f"--lr_decay_iters={RECIPE_STEPS}"]
    length.append(f"--eval_interval={NANOGPT_EVAL_INTERVAL}")
    printed = harness.call(harness.nanogpt_dir, "train.py", *README_COMMAND, *length).stdout
    times = {int(n): float(ms) for n, ms in re.findall(r"^iter (\d+): loss .*, time ([\d.]+)ms", printed, re.MULTILINE)}
    median_time = median(times.values())
    milliseconds, seconds_at = 0.0, {}
    for number in range(RECIPE_STEPS + 1):
        seconds_at[number] = milliseconds / 1000
        milliseconds += median_time if number % NANOGPT_EVAL_INTERVAL == 0 else times[number]
    evaluations = re.findall(r"^step (\d+): train loss .*, val loss ([\d.]+)", printed, re.MULTILINE)
    return [(seconds_at[int(number)], float(loss)) for number, loss in evaluations if int(number)]


def save_plot(curves: dict[str, Any], machine: dict[str, Any], path: Path) -> None:
    """Write the plot as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        seconds, losses = zip(*curve, strict=True)
        axes.plot(seconds, losses, label=name)
        axes.annotate(f"{losses[-1]:.2f}", (seconds[-1], losses[-1]), xytext=(3, 0), textcoords="offset points")
    end = curves[NANOGPT_LABEL][-1][1]
    axes.axhline(end, color="gray", linewidth=0.7, linestyle=":")
    axes.set(
        xlabel=f"seconds of training ({machine['cpu']}, {machine['threads']} threads)",
        ylabel="val loss, nats per character",
        ylim=(1.4, 2.6),
    )
    axes.legend()
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    sys.exit(main())
