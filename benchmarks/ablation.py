"""What each part of the recipe `modern-cpu` is worth: the val loss after the same time with the part changed.

    python benchmarks/ablation.py                         # on Shakespeare
    python benchmarks/ablation.py --dataset python_docs   # on a text that the recipe was not made for

The recipe is timed once, and each variant against it, step by step in turn, since the pace of a machine changes from
minute to minute; then the variant trains for as many steps as fit into the time at the recipe's first pace, from
several seeds, with the schedule stretched to that number. The loss is that of the whole val split. Nothing else should
use the machine meanwhile.
"""

import argparse
import shlex
import sys
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from table import circumstances, exit_status, machine_line, save

import nanogpt_lite as ng
from nanogpt_lite.config.schema import Value
from nanogpt_lite.tracking.records import EvalRecord, Record, StepRecord

RESULTS = Path(__file__).resolve().parent / "results"
TIMED_STEPS, WARM_UP = 60, 5

# what is changed, and how; where a part leaves a number behind that was chosen together with it, that is chosen anew
VARIANTS: dict[str, dict[str, Value]] = {
    "the recipe": {},
    "no n-grams": {"ngram": 1},
    "bigrams only": {"ngram": 2},
    "bigrams and trigrams only": {"ngram": 3},
    "n-grams of 5 too": {"ngram": 5},
    "no n-gram dropout": {"ngram_dropout": 0.0},
    "AdamW alone, 0.003": {"optimizer": "adamw", "learning_rate": 3e-3},
    "AdamW alone, 0.01": {"optimizer": "adamw", "learning_rate": 1e-2},
    "learned positions": {"position": "learned"},
    "no QK-norm": {"qk_norm": False},
    "RMSNorm": {"norm": "rms"},
    "GELU": {"activation": "gelu"},
    "tied output": {"tied": True},
    "GPT-2's first weights": {"zero_init": False},
    "cosine": {"cooldown": 0.0},
    "no weight decay": {"weight_decay": 0.0},
    "gradients clipped at 1": {"grad_clip": 1.0},
    "dropout 0.1": {"dropout": 0.1},
    "float32": {"dtype": "float32"},
}


def main() -> int:
    """The exit status."""
    return exit_status(lambda: measure(parse_arguments()))


def parse_arguments() -> argparse.Namespace:
    """The options of this call. `UserError` if they make no sense."""
    parser = argparse.ArgumentParser(description="What each part of modern-cpu is worth.", allow_abbrev=False)
    parser.add_argument("--dataset", default="shakespeare_char", help="a text (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=30.0, help="of training (default: %(default)g)")
    parser.add_argument("--seeds", type=int, default=3, help="how many (default: %(default)s)")
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), help="variants, by name (default: all)")
    parser.add_argument("--out", type=Path, help="writes OUT.json, OUT.md (default: by dataset)")
    given = parser.parse_args()
    given.out = given.out or RESULTS / f"ablation_{Path(given.dataset).stem}"
    if unknown := [name for name in given.only if name not in VARIANTS]:
        raise ng.UserError(f"--only has {unknown[0]!r}, which is no variant; give some of: {', '.join(VARIANTS)}")
    if given.seeds < 1 or given.seconds <= 0:
        raise ng.UserError(f"--seeds {given.seeds} and --seconds {given.seconds:g} have to be above 0")
    return given


def measure(given: argparse.Namespace) -> None:
    """Train each variant, and write the table after each."""
    words = ["--dataset", given.dataset, "--seconds", f"{given.seconds:g}", "--seeds", str(given.seeds)]
    only = [] if given.only == list(VARIANTS) else ["--only", *given.only]
    report = {**circumstances(shlex.join(["python", "benchmarks/ablation.py", *words, *only])), "rows": []}
    with tempfile.TemporaryDirectory(prefix="ablation_") as folder:
        data = ng.prepare(given.dataset, out_dir=Path(folder) / "data")
        report["text"] = {"dataset": given.dataset, "sha256": data.sha256}
        (alone,) = step_times(data, [{}], Path(folder))
        for name in given.only:
            recipe, variant = step_times(data, [{}, VARIANTS[name]], Path(folder))
            steps = max(1, round(given.seconds / alone * recipe / variant))
            runs = [train(data, VARIANTS[name], steps, seed, Path(folder) / "run") for seed in range(given.seeds)]
            losses = [run["val_loss"] for run in runs]
            report["rows"].append({
                "variant": name,
                "changed": VARIANTS[name],
                "step_time": variant / recipe,
                "steps": steps,
                "seconds": median(run["seconds"] for run in runs),
                "val_loss": mean(losses),
                "spread": stdev(losses) if len(losses) > 1 else 0.0,
                "runs": runs,
            })  # fmt: skip
            shown = report["rows"][-1]
            print(f"{name}: {shown['val_loss']:.4f} after {steps} steps, {shown['seconds']:.1f} s", file=sys.stderr)
            save(report, markdown(report), given.out)
    print(markdown(report), end="")


def begin(data: ng.Dataset, out_dir: Path, options: dict[str, Any]) -> Generator[Record]:
    """The records of a training by the recipe with other options."""
    return ng.training(data, preset="modern-cpu", out_dir=out_dir, overwrite=True, **options)


def step_times(data: ng.Dataset, variants: Sequence[Mapping[str, Value]], folder: Path) -> list[float]:
    """Seconds of a step of each variant, taken in turn: medians after a warm-up."""
    options = {"max_iters": TIMED_STEPS + 1, "log_interval": 1, "eval_interval": TIMED_STEPS + 1}
    taken: list[list[float]] = [[] for _ in variants]
    with ExitStack() as stack:
        runs = [begin(data, folder / f"timed_{n}", {**changed, **options}) for n, changed in enumerate(variants)]
        for records in runs:
            stack.enter_context(closing(records))
        for _ in range(TIMED_STEPS):
            for records, seconds in zip(runs, taken, strict=True):
                begun = time.perf_counter()
                next(record for record in records if isinstance(record, StepRecord))
                seconds.append(time.perf_counter() - begun)
    return [median(seconds[WARM_UP:]) for seconds in taken]


def train(data: ng.Dataset, changed: Mapping[str, Value], steps: int, seed: int, out_dir: Path) -> dict[str, float]:
    """The loss of a variant after so many steps, and the seconds that they took."""
    options = {"max_iters": steps, "eval_interval": steps, "log_interval": steps, "seed": seed}
    records = begin(data, out_dir, {**changed, **options})
    (last,) = (record for record in records if isinstance(record, EvalRecord))
    return {"val_loss": last.val_loss, "seconds": last.seconds}


def markdown(report: dict[str, Any]) -> str:
    """The table, the worst part to lose first."""
    rows = report["rows"]
    recipe = next((row["val_loss"] for row in rows if not row["changed"]), None)
    lines = [
        f"{machine_line(report)}; text {report['text']['dataset']}, SHA-256 {report['text']['sha256'][:12]}…",
        "",
        "| variant | val loss | spread | against the recipe | a step takes | steps | s |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in sorted(rows, key=lambda row: (bool(row["changed"]), -row["val_loss"])):
        against = f"{row['val_loss'] - recipe:+.4f}" if recipe is not None and row["changed"] else ""
        cells = [row["variant"], f"{row['val_loss']:.4f}", f"{row['spread']:.4f}", against]
        cells += [f"{row['step_time']:.2f}", str(row["steps"]), f"{row['seconds']:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "Mean and standard deviation over the seeds. Above zero is worse than the recipe, whose step takes 1.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
