"""Loss curves of trainings that go well and of trainings that do not, beside n-gram models of the same text: a figure.

    python benchmarks/loss_curves.py

Each case trains a small network on a part of a text, in float32 on one thread, so that a repetition on the same machine
has the same losses. What a case does not change is the preset modern-cpu, with the recipe for its text; no run is
stopped early. The figure is for docs/is-my-loss-normal.md.
"""

import argparse
import base64
import codecs
import dataclasses
import random
import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from harness import evaluations
from table import describe_environment, exit_status, machine_line, save

import nanogpt_lite as ng
from nanogpt_lite.config.schema import Value
from nanogpt_lite.config.spelling import for_command_line
from nanogpt_lite.data.sources import TRAIN_FRACTION
from nanogpt_lite.tracking.console import Console, format_result
from nanogpt_lite.tracking.records import ResultRecord, record_from_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OUT = Path(__file__).resolve().parent / "results" / "loss_curves"
# of a longer text, the recipe's steps are fewer than would help, so also the normal run is said to be still falling
CHARACTERS, FEW_CHARACTERS = 130_000, 20_000
NETWORK: dict[str, Any] = {
    "n_layer": 2,
    "n_embd": 64,
    "block_size": 64,
    "batch_size": 64,
    "ngram_rows": 4096,
    "ngram_expert": 0,
}
SHARED: dict[str, Any] = {"preset": "modern-cpu", **NETWORK, "device": "cpu", "dtype": "float32", "threads": 1}
SHARED |= {"patience": 0, "log_interval": 5}
MAX_LOSS = 6.0  # in the figure
BASELINES = {"unigram": ":", "bigram": "-.", "five_gram": "--"}  # and their line styles


@dataclass(frozen=True, kw_only=True)
class Case:
    """A training: what is wrong with it, its text, and the options that differ from those of the first case."""

    name: str
    text: Callable[[str], str]  # made from the text that is given
    about_text: str = f"the first {CHARACTERS:,} characters"
    options: Mapping[str, Value] = field(default_factory=dict)


def first_part(text: str) -> str:
    """The start of a text."""
    return text[:CHARACTERS]


def short_part(text: str) -> str:
    """A short start of a text."""
    return text[:FEW_CHARACTERS]


def with_other_end(text: str) -> str:
    """The same characters as `first_part`, but the val split is as another language: each letter is another one."""
    split_at = int(CHARACTERS * TRAIN_FRACTION)
    return text[:split_at] + codecs.encode(text[split_at:CHARACTERS], "rot13")


def random_text(_: str) -> str:
    """Random bytes in base64, which nothing can predict."""
    return base64.b64encode(random.Random(0).randbytes(CHARACTERS * 3 // 4)).decode()


CASES = (
    Case(name="normal", text=first_part),
    Case(
        name="overfitting",
        text=short_part,
        about_text=f"the first {FEW_CHARACTERS:,} characters",
        options={"max_iters": 300, "dropout": 0.0, "ngram_dropout": 0.0},
    ),
    Case(
        name="learning rate too high",
        text=first_part,
        options={"learning_rate": 1.0, "muon_learning_rate": 1.0},
    ),
    Case(
        name="learning rate too low",
        text=first_part,
        options={"learning_rate": 1e-4, "muon_learning_rate": 1e-4, "min_lr": 1e-6},
    ),
    Case(name="too few steps", text=first_part, options={"max_iters": 30}),
    Case(
        name="val split of another kind",
        text=with_other_end,
        about_text="the same, each letter of the val split replaced by another one (rot13)",
    ),
    Case(name="random text", text=random_text, about_text=f"{CHARACTERS:,} characters of random base64"),
)


def main() -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(description="Loss curves of good and bad trainings.", allow_abbrev=False)
    parser.add_argument("--dataset", default="python_docs", help="a text (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=OUT, help="write OUT.json, OUT.md and OUT.png")
    args = parser.parse_args()
    return exit_status(lambda: measure(args.dataset, args.out))


def measure(dataset: str, out: Path) -> None:
    """Train each case, and save the figure and the table. `UserError` if the text is too short."""
    words = [] if dataset == "python_docs" else ["--dataset", dataset]
    report = describe_environment(shlex.join(["python", "benchmarks/loss_curves.py", *words]), threads=1)
    with tempfile.TemporaryDirectory(prefix="loss_curves_") as folder:
        data = ng.prepare(dataset, out_dir=Path(folder) / "whole")
        text = data.tokenizer.decode(np.concatenate([data.train, data.val]))
        if len(text) < CHARACTERS:
            raise ng.UserError(f"{dataset} has {len(text):,} characters; give a text with at least {CHARACTERS:,}")
        report["text"] = {"dataset": dataset, "sha256": data.sha256}
        report["cases"] = [train(case, text, Path(folder)) for case in CASES]
    save(report, markdown(report), out)
    save_figure(report, out.with_name(f"{out.name}.png"))
    print(markdown(report), end="")


def train(case: Case, text: str, folder: Path) -> dict[str, Any]:
    """The curves and the result of a case as JSON."""
    path = folder / f"{case.name.replace(' ', '_')}.txt"
    path.write_text(case.text(text), encoding="utf-8")
    data = ng.prepare(path, out_dir=folder / path.stem)
    options = {**SHARED, **case.options}
    run = ng.train(data, out_dir=folder / "runs" / path.stem, console=Console(silent=True), **options)
    (result,) = (record for record in map(record_from_json, run.metrics) if isinstance(record, ResultRecord))
    print(f"{case.name}: {result.verdict}", file=sys.stderr)
    return {
        "name": case.name,
        "text": case.about_text,
        "options": dict(case.options),
        "train": [[record["step"], round(record["loss"], 4)] for record in run.metrics if record["kind"] == "step"],
        "val": [[record["step"], round(record["val_loss"], 4)] for record in evaluations(run)],
        "result": dataclasses.asdict(result),
    }


def markdown(report: dict[str, Any]) -> str:
    """The table of the cases; then the text and the options of each, and what the program says about it."""
    lines = [
        f"{machine_line(report)}; text {report['text']['dataset']}, SHA-256 {report['text']['sha256'][:12]}…",
        "",
        "| case | steps | best val loss | at step | last val loss | unigram | bigram | 5-gram |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for case in report["cases"]:
        result, (_, last_loss) = case["result"], case["val"][-1]
        losses = [f"{loss:.4f}" for loss in (last_loss, *(result[name] for name in BASELINES))]
        cells = [case["name"], str(result["step"]), f"{result['val_loss']:.4f}", str(result["best_step"]), *losses]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Losses are in nats per character. What each case is, and what the program says at its end:"]
    for case in report["cases"]:
        options = f"; `{spell(case['options'])}`" if case["options"] else ""
        lines += ["", f"**{case['name']}** ({case['text']}{options})", ""]
        lines += [f"    {for_command_line(line)}" for line in format_result(ResultRecord(**case["result"]))]
    return "\n".join(lines) + "\n"


def spell(options: Mapping[str, Value]) -> str:
    """Options as they are given on the command line."""
    return " ".join(f"--{name} {value:g}" for name, value in options.items())


def save_figure(report: dict[str, Any], path: Path) -> None:
    """Write the figure as PNG: a panel for each case, and the legend in the place of one more."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 12), layout="constrained")
    panels = figure.subplots(4, 2, sharey=True).flat
    for case, axes in zip(report["cases"], panels, strict=False):
        draw(case, axes)
    handles, labels = panels[0].get_legend_handles_labels()
    panels[7].axis("off")
    panels[7].legend(handles, labels, loc="center", frameon=False, fontsize="large")
    figure.savefig(path, dpi=110)


def draw(case: dict[str, Any], axes: "Axes") -> None:
    """The curves of a case, and the losses of the n-gram models as horizontal lines."""
    axes.plot(*zip(*case["train"], strict=True), color="tab:blue", alpha=0.5, linewidth=1, label="train loss")
    axes.plot(*zip(*case["val"], strict=True), color="tab:orange", marker="o", markersize=4, label="val loss")
    for name, style in BASELINES.items():
        label = f"{name.replace('five_gram', '5-gram')} model on the val split"
        axes.axhline(case["result"][name], color="black", linewidth=1, linestyle=style, label=label)
    axes.set_title(f"{case['name']}: {case['val'][-1][1]:.2f} at the end", loc="left", fontweight="bold")
    axes.set(xlabel="step", ylabel="nats per character", ylim=(0, MAX_LOSS))
    axes.tick_params(labelleft=True)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    sys.exit(main())
