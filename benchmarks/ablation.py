"""Ablation of the recipe `modern-cpu`: the val loss after the same training time with one part changed.

It is the loss of the network alone, so all variants are without the n-gram expert.

    python benchmarks/ablation.py                         # on Shakespeare
    python benchmarks/ablation.py --dataset python_docs   # on a text that the recipe was not tuned on

The recipe is timed once. Each variant is timed against it, alternating steps, since the speed of a machine changes
from minute to minute. Then the variant trains for as many steps as fit into the time at the recipe's first speed, with
several seeds and the schedule stretched to that number of steps. The loss is that of the whole val split. Run nothing
else on the machine meanwhile.
"""

import argparse
import shlex
import sys
import tempfile
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from step_times import step_times, timed_options
from table import describe_environment, exit_status, machine_line, save

import nanogpt_lite as ng
from nanogpt_lite.config.schema import Value
from nanogpt_lite.tracking.records import EvalRecord, Record

RESULTS = Path(__file__).resolve().parent / "results"
TIMED_STEPS, WARM_UP = 60, 5

# the changed options; a number that was tuned together with a removed part is tuned again
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
    "windows at random positions": {"batch_sampling": "random"},
    "GPT-2's first weights": {"zero_init": False},
    "cosine": {"cooldown": 0.0},
    "no weight decay": {"weight_decay": 0.0},
    "gradients clipped at 1": {"grad_clip": 1.0},
    "dropout 0.1": {"dropout": 0.1},
    "float32": {"dtype": "float32"},
}


def main() -> int:
    """Run the benchmark; returns the exit status."""
    return exit_status(lambda: measure(parse_arguments()))


def parse_arguments() -> argparse.Namespace:
    """The command line. `UserError` for invalid values."""
    parser = argparse.ArgumentParser(description="Ablation of the recipe modern-cpu.", allow_abbrev=False)
    parser.add_argument("--dataset", default="shakespeare_char", help="a text (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=30.0, help="training time of a variant (default: %(default)g)")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default: %(default)s)")
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), help="variants, by name; needs --out")
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md (default: named by dataset)")
    args = parser.parse_args()
    if unknown := [name for name in args.only if name not in VARIANTS]:
        raise ng.UserError(f"--only has {unknown[0]!r}, which is not a variant; give some of: {', '.join(VARIANTS)}")
    if args.only != list(VARIANTS) and not args.out:
        raise ng.UserError("--only would replace the table of all variants; give --out, another place for it")
    args.out = args.out or RESULTS / f"ablation_{Path(args.dataset).stem}"
    if args.seeds < 1 or args.seconds <= 0:
        raise ng.UserError(f"--seeds {args.seeds} and --seconds {args.seconds:g} must be above 0")
    return args


def measure(args: argparse.Namespace) -> None:
    """Train each variant, and write the table after each."""
    words = ["--dataset", args.dataset, "--seconds", f"{args.seconds:g}", "--seeds", str(args.seeds)]
    only = [] if args.only == list(VARIANTS) else ["--only", *args.only]
    report = {**describe_environment(shlex.join(["python", "benchmarks/ablation.py", *words, *only])), "rows": []}
    with tempfile.TemporaryDirectory(prefix="ablation_") as folder:
        data = ng.prepare(args.dataset, out_dir=Path(folder) / "data")
        report["text"] = {"dataset": args.dataset, "sha256": data.sha256}
        (first_recipe_time,) = variant_step_times(data, [{}], Path(folder))
        for name in args.only:
            recipe_time, variant_time = variant_step_times(data, [{}, VARIANTS[name]], Path(folder))
            steps = max(1, round(args.seconds / first_recipe_time * recipe_time / variant_time))
            runs = [train(data, VARIANTS[name], steps, seed, Path(folder) / "run") for seed in range(args.seeds)]
            losses = [run["val_loss"] for run in runs]
            report["rows"].append({
                "variant": name,
                "changed": VARIANTS[name],
                "step_time": variant_time / recipe_time,
                "steps": steps,
                "seconds": median(run["seconds"] for run in runs),
                "val_loss": mean(losses),
                "spread": stdev(losses) if len(losses) > 1 else 0.0,
                "runs": runs,
            })  # fmt: skip
            row = report["rows"][-1]
            print(f"{name}: {row['val_loss']:.4f} after {steps} steps, {row['seconds']:.1f} s", file=sys.stderr)
            save(report, markdown(report), args.out)
    print(markdown(report), end="")


def start_training(data: ng.Dataset, out_dir: Path, options: dict[str, Any]) -> Generator[Record]:
    """The records of a training by the recipe with some options changed."""
    return ng.training(data, preset="modern-cpu", out_dir=out_dir, overwrite=True, **{"ngram_expert": 0, **options})


def variant_step_times(data: ng.Dataset, variants: Sequence[Mapping[str, Value]], folder: Path) -> list[float]:
    """Median seconds per step of each variant, in alternating steps, after a warm-up."""
    options = timed_options(TIMED_STEPS)
    runs = [start_training(data, folder / f"timed_{n}", {**changed, **options}) for n, changed in enumerate(variants)]
    return step_times(runs, steps=TIMED_STEPS, warm_up=WARM_UP)


def train(data: ng.Dataset, changed: Mapping[str, Value], steps: int, seed: int, out_dir: Path) -> dict[str, float]:
    """The val loss of a variant after `steps` steps, and the seconds of training."""
    options = {"max_iters": steps, "eval_interval": steps, "log_interval": steps, "seed": seed}
    records = start_training(data, out_dir, {**changed, **options})
    (last,) = (record for record in records if isinstance(record, EvalRecord))
    return {"val_loss": last.val_loss, "seconds": last.seconds}


def markdown(report: dict[str, Any]) -> str:
    """The table; the variant with the highest loss comes first."""
    rows = report["rows"]
    recipe = next((row["val_loss"] for row in rows if not row["changed"]), None)
    lines = [
        f"{machine_line(report)}; text {report['text']['dataset']}, SHA-256 {report['text']['sha256'][:12]}…",
        "",
        "| variant | val loss | std | difference from the recipe | relative step time | steps | s |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in sorted(rows, key=lambda row: (bool(row["changed"]), -row["val_loss"])):
        difference = f"{row['val_loss'] - recipe:+.4f}" if recipe is not None and row["changed"] else ""
        cells = [row["variant"], f"{row['val_loss']:.4f}", f"{row['spread']:.4f}", difference]
        cells += [f"{row['step_time']:.2f}", str(row["steps"]), f"{row['seconds']:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "Mean and standard deviation over the seeds. A positive difference is worse than the recipe.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
