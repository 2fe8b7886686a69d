"""The val loss against the seconds of training, of this program's recipes for a CPU and of nanoGPT's, as a picture.

    python benchmarks/curves.py --nanogpt nanoGPT

Seconds are those of the steps, without evaluations and start-up. This program evaluates the whole val split, nanoGPT
estimates the loss from 20 random batches. Nothing else should use the machine meanwhile.
"""

import argparse
import re
import shlex
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from harness import COMMAND, README_COMMAND, RECIPE_STEPS, Harness, require_clone, set_up
from table import circumstances, exit_status, machine_line, save

import nanogpt_lite as ng

OUT = Path(__file__).resolve().parent / "results" / "curves"
THEIR_INTERVAL = 100
THEIRS = "nanoGPT, its recipe for a CPU (estimates from 20 batches)"

Curve = list[tuple[float, float]]
"""Seconds and val losses."""


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description="Val loss against seconds, as a picture.", allow_abbrev=False)
    parser.add_argument("--nanogpt", type=Path, required=True, help="a clone of nanoGPT; it is only read")
    parser.add_argument("--out", type=Path, default=OUT, help="writes OUT.json, OUT.md, OUT.png")
    given = parser.parse_args()
    return exit_status(lambda: measure(given.nanogpt, given.out))


def measure(clone: Path, out: Path) -> None:
    """Train by each recipe once, and draw."""
    require_clone(clone)
    report = circumstances(shlex.join(["python", "benchmarks/curves.py", "--nanogpt", "nanoGPT"]), clone)
    with tempfile.TemporaryDirectory(prefix="curves_") as folder:
        harness = set_up(Path(folder), clone)
        report["curves"] = {
            THEIRS: theirs(harness),
            "nanogpt_lite, the same recipe": ours(harness, "cpu", 100),
            "nanogpt_lite, modern-cpu": ours(harness, "modern-cpu", 25),
        }
    save(report, f"{machine_line(report)}\n", out)
    draw(report["curves"], report["machine"], out.with_name(f"{out.name}.png"))


def ours(harness: Harness, preset: str, interval: int) -> Curve:
    """The curve of a preset."""
    out_dir = harness.ours / "runs" / preset
    options = ["--preset", preset, "--device", "cpu", "--eval_interval", str(interval), "--out_dir", str(out_dir)]
    harness.call(harness.ours, *COMMAND, "train", *options)
    return [(r["seconds"], r["val_loss"]) for r in ng.Run(out_dir).metrics if r["kind"] == "eval"]


def theirs(harness: Harness) -> Curve:
    """The curve of nanoGPT's recipe. An iteration that begins with an evaluation counts as a usual one."""
    length = [f"--max_iters={RECIPE_STEPS}", f"--lr_decay_iters={RECIPE_STEPS}", f"--eval_interval={THEIR_INTERVAL}"]
    printed = harness.call(harness.theirs, "train.py", *README_COMMAND, *length).printed
    times = {int(n): float(ms) for n, ms in re.findall(r"^iter (\d+): loss .*, time ([\d.]+)ms", printed, re.MULTILINE)}
    usual = median(times.values())
    seconds, curve = 0.0, {}
    for number in range(RECIPE_STEPS + 1):
        curve[number] = seconds / 1000
        seconds += usual if number % THEIR_INTERVAL == 0 else times[number]
    found = re.findall(r"^step (\d+): train loss .*, val loss ([\d.]+)", printed, re.MULTILINE)
    return [(curve[int(number)], float(loss)) for number, loss in found if int(number)]


def draw(curves: dict[str, Any], machine: dict[str, Any], path: Path) -> None:
    """The picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        seconds, losses = zip(*curve, strict=True)
        axes.plot(seconds, losses, label=name)
        axes.annotate(f"{losses[-1]:.2f}", (seconds[-1], losses[-1]), xytext=(3, 0), textcoords="offset points")
    end = curves[THEIRS][-1][1]
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
