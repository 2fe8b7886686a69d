"""nanogpt_lite and nanoGPT in turn, on the same data and machine: speed, memory and losses.

    git clone https://github.com/karpathy/nanoGPT
    python benchmarks/vs_nanogpt.py --nanogpt nanoGPT              # the table
    python benchmarks/vs_nanogpt.py --nanogpt nanoGPT --parity     # the losses with the same weights and batches

Everything runs on the CPU; run nothing else on it meanwhile. The clone is not changed. See `harness` for how the
programs are run, `probe` for measurements inside a process, `rows` for what is measured, `table` for the output.
"""

import argparse
import filecmp
import itertools
import json
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from harness import (
    COMMAND,
    DATA,
    README_COMMAND,
    RECIPE_STEPS,
    Harness,
    evaluations,
    require_clone,
    save_networks,
    set_up,
)
from rows import (
    COUNTED_LOSS,
    COUNTED_PROCESS,
    FEWER_SAMPLES,
    FORMATS,
    INT8_LOSS,
    LOSS,
    LOSS_FAST,
    MEMORY,
    MODERN,
    MODERN_LOSS,
    MODERN_MEMORY,
    NETWORK_LOSS,
    ONE_SAMPLE,
    PARTS,
    PREPARE,
    ROWS,
    SAMPLING_MEMORY,
    SPRINT,
    SPRINT_LOSS,
    SPRINT_PROCESS,
    STEP,
    STEP_FAST,
    TEN_SAMPLES,
    TRAINING,
)
from table import Row, Values, describe_environment, exit_status, markdown, save

import nanogpt_lite as ng
from nanogpt_lite.config.schema import require_known
from nanogpt_lite.device import devices
from nanogpt_lite.tracking.records import StepRecord
from nanogpt_lite.trainer import loop
from nanogpt_lite.trainer.state import init_state

OUT = Path(__file__).resolve().parent / "results" / "vs_nanogpt"
TEXT_SIZE = 100_000_000  # characters, of one byte each
SPRINT_STEPS = 38
# chosen by the val loss of two seeds after so few steps
SPRINT_OPTIONS = ("--n_layer=1", "--batch_size=8", "--ngram=5", "--ngram_dropout=0", "--ngram_expert=0")
ONE_STEP = ("--max_iters", "1", "--warmup_iters", "0")
NO_BFLOAT16 = "not measured: no fast bfloat16 here"
PARITY_STEPS = 20
PARITY_LIMIT = 1e-5  # relative difference of a step's loss

Pair = tuple[Callable[[], Values], Callable[[], Values]]
"""Functions that measure a part of the table once, in nanogpt_lite and in nanoGPT."""


def main() -> int:
    """Run the benchmark; returns the exit status, which is 1 if the losses differ from nanoGPT's."""
    return exit_status(compare)


def compare() -> None:
    """Set up both programs, and compare their speed or their losses."""
    args = parse_arguments()
    with tempfile.TemporaryDirectory(prefix="vs_nanogpt_") as folder:
        harness = set_up(Path(folder), args.nanogpt)
        if not args.parity:
            compare_speed(harness, args)
        elif not compare_losses(harness):
            raise ng.ExternalError("the losses differ from nanoGPT's")


def parse_arguments() -> argparse.Namespace:
    """The command line. `UserError` for invalid values."""
    parser = argparse.ArgumentParser(description="Compare nanogpt_lite with nanoGPT on a CPU.", allow_abbrev=False)
    parser.add_argument("--nanogpt", type=Path, required=True, help="a clone of nanoGPT, which is not changed")
    parser.add_argument("--parity", action="store_true", help=f"only compare the losses of {PARITY_STEPS} steps")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each program, in turn (default: 3)")
    parser.add_argument("--only", default=",".join(PARTS), help="parts to measure (default: %(default)s)")
    parser.add_argument("--max_iters", type=int, default=RECIPE_STEPS, help="training steps (default: %(default)s)")
    parser.add_argument("--sprint", type=int, default=SPRINT_STEPS, help="steps of the sprint (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=OUT, help="write OUT.json and OUT.md")
    args = parser.parse_args()
    args.only = args.only.split(",")
    require_known(args.only, PARTS, "part for --only")
    for name in ("repeats", "max_iters", "sprint"):
        if getattr(args, name) < 1:
            raise ng.UserError(f"--{name} is {getattr(args, name)}; it must be 1 or more")
    require_clone(args.nanogpt)
    return args


def compare_speed(harness: Harness, args: argparse.Namespace) -> None:
    """Measure the selected parts, both programs in turn; save and print the table."""
    settings = {
        "repeats": args.repeats,
        "only": ",".join(args.only),
        "max_iters": args.max_iters,
        "sprint": args.sprint,
    }
    options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    command = shlex.join(["python", "benchmarks/vs_nanogpt.py", "--nanogpt", "nanoGPT", *options])
    report = {**describe_environment(command, args.nanogpt), "rows": []}
    pairs: dict[str, Callable[[Harness], Pair]] = {
        "prepare": prepare,
        "sample": sample,
        "train": partial(train, max_iters=args.max_iters, sprint=args.sprint),
    }
    for part in args.only:
        pair = pairs[part](harness)
        runs: tuple[list[Values], list[Values]] = [], []
        for number in range(args.repeats):
            for program, measure, values in zip(("nanogpt_lite", "nanoGPT"), pair, runs, strict=True):
                values.append(measure())
                summary = ", ".join(f"{name} {value:.4g}" for name, value in values[-1].items())
                print(f"{part} {number + 1}/{args.repeats}, {program}: {summary}", file=sys.stderr)
        report["rows"] += [line(row, *runs) for row in ROWS if row.part == part]
        save(report, markdown(report), args.out)  # after each part, since the next one takes long
    print(markdown(report), end="")


def line(row: Row, lite: list[Values], nanogpt: list[Values]) -> dict[str, Any]:
    """A row of the table, with the reason if it was not measured."""
    is_missing = row in (STEP_FAST, LOSS_FAST) and not devices.multiplies_bfloat16_faster()
    return {**row.line(lite, nanogpt), **({"reason": NO_BFLOAT16} if is_missing else {})}


def prepare(harness: Harness) -> Pair:
    """Encoding of a long text."""
    lite_dir, nanogpt_dir = harness.folder / "prepare" / "lite", harness.folder / "prepare" / "nanogpt"
    nanogpt_dir.mkdir(parents=True)
    shutil.copyfile(harness.nanogpt_dir / DATA / "prepare.py", nanogpt_dir / "prepare.py")
    source, text = nanogpt_dir / "input.txt", harness.text
    source.write_bytes((text * (TEXT_SIZE // len(text) + 1))[:TEXT_SIZE])

    def measure_lite() -> Values:
        shutil.rmtree(lite_dir, ignore_errors=True)
        paths = ["--dataset", str(source), "--out_dir", str(lite_dir)]
        return {PREPARE.name: TEXT_SIZE / 1e6 / harness.call(harness.lite_dir, *COMMAND, "prepare", *paths).seconds}

    def measure_nanogpt() -> Values:
        seconds = harness.call(nanogpt_dir, "prepare.py").seconds
        for name in ("train.bin", "val.bin"):
            if not filecmp.cmp(lite_dir / name, nanogpt_dir / name, shallow=False):
                raise ng.ExternalError(f"{name} differs from what nanoGPT's prepare.py writes")
            (nanogpt_dir / name).unlink()
        return {PREPARE.name: TEXT_SIZE / 1e6 / seconds}

    return measure_lite, measure_nanogpt


def sample(harness: Harness) -> Pair:
    """Text generation, with the same random weights."""
    lite, nanogpt = save_networks(harness)

    def measure_lite() -> Values:
        values, memory = {}, 0.0
        for name in FORMATS:
            for samples, row in (("1", ONE_SAMPLE[name]), ("10", TEN_SAMPLES[name])):
                measured = harness.probe("sample_lite", lite, samples, name, "cpu")
                values[row.name] = measured["tokens_per_second"]
                memory = measured["memory"] if name == "float32" else memory
        return {**values, SAMPLING_MEMORY.name: memory}

    def measure_nanogpt() -> Values:
        one, some = (harness.probe("sample_nanogpt", nanogpt, str(samples), "cpu") for samples in (1, FEWER_SAMPLES))
        return {
            **{row.name: one["tokens_per_second"] for row in ONE_SAMPLE.values()},
            **{row.name: some["tokens_per_second"] for row in TEN_SAMPLES.values()},
            SAMPLING_MEMORY.name: some["memory"],
        }

    return measure_lite, measure_nanogpt


def train(harness: Harness, *, max_iters: int, sprint: int) -> Pair:
    """nanoGPT's recipe for a CPU as whole processes, and the recipe `modern-cpu` compared with it."""
    default = ng.TrainConfig.eval_interval
    # nanoGPT saves only at an evaluation, so the last step has to be one
    interval = max_iters if max_iters % default else default
    decay = max(max_iters, ng.TrainConfig.warmup_iters + 1)  # with no decay step nanoGPT divides by zero
    length = [f"--max_iters={max_iters}", f"--lr_decay_iters={decay}"]

    seeds = itertools.count(ng.TrainConfig.seed)  # a new seed for each repeat

    def evaluate(run: ng.Run, *options: str) -> dict[str, Any]:
        words = ["--out_dir", str(run.out_dir), "--checkpoint", "last", "--device", "cpu", "--json", *options]
        evaluated: dict[str, Any] = json.loads(harness.call(harness.lite_dir, *COMMAND, "eval", *words).stdout)
        return evaluated

    def measure_lite() -> Values:
        cpu_process, cpu = harness.train("cpu", "--preset", "cpu", *length)
        in_bfloat16 = {}
        if devices.multiplies_bfloat16_faster():
            _, bfloat16 = harness.train("bfloat16", "--preset", "cpu", "--dtype", "bfloat16", *length)
            in_bfloat16 = {
                STEP_FAST.name: step_milliseconds(bfloat16),
                LOSS_FAST.name: evaluations(bfloat16)[-1]["val_loss"],
            }
        seed = ("--seed", str(next(seeds)))
        sprint_length = ("--max_iters", str(sprint), "--eval_interval", str(sprint))
        sprint_process, sprint_run = harness.train(
            "sprint", "--preset", "modern-cpu", *SPRINT_OPTIONS, *sprint_length, *seed
        )
        counted_process, counted = harness.train("counted", "--preset", "modern-cpu", *ONE_STEP, *seed)
        modern_process, modern = harness.train("modern", "--preset", "modern-cpu", *seed)
        evaluated = evaluate(modern)
        return {
            TRAINING.name: cpu_process.seconds,
            STEP.name: step_milliseconds(cpu),
            LOSS.name: evaluations(cpu)[-1]["val_loss"],
            MEMORY.name: cpu_process.memory,
            **in_bfloat16,
            SPRINT.name: evaluations(sprint_run)[-1]["seconds"],
            SPRINT_PROCESS.name: sprint_process.seconds,
            SPRINT_LOSS.name: evaluations(sprint_run)[-1]["val_loss"],
            COUNTED_PROCESS.name: counted_process.seconds,
            COUNTED_LOSS.name: evaluations(counted)[-1]["val_loss"],
            MODERN.name: modern_process.seconds,
            MODERN_LOSS.name: evaluations(modern)[-1]["val_loss"],
            MODERN_MEMORY.name: modern_process.memory,
            NETWORK_LOSS.name: evaluated["network_val_loss"],
            INT8_LOSS.name: abs(evaluate(modern, "--int8=True")["val_loss"] - evaluated["val_loss"]),
        }

    def measure_nanogpt() -> Values:
        out_dir = harness.nanogpt_dir / "out"
        # without always_save_checkpoint it keeps the weights with its best estimate, not the last ones
        more = [f"--eval_interval={interval}", "--always_save_checkpoint=True", f"--out_dir={out_dir}"]
        process = harness.call(harness.nanogpt_dir, "train.py", *README_COMMAND, *length, *more)
        times = re.findall(r"^iter (\d+): loss .*, time ([\d.]+)ms", process.stdout, re.MULTILINE)
        step = median(float(time) for _, time in times)
        # the time of an iteration with an evaluation includes the evaluation, so the median replaces it
        training = sum(step if int(number) % interval == 0 else float(time) for number, time in times) / 1000
        loss = harness.probe("evaluate_nanogpt", out_dir / "ckpt.pt", harness.nanogpt_dir / DATA / "val.bin")[
            "val_loss"
        ]
        return {
            **{row.name: process.seconds for row in (TRAINING, SPRINT_PROCESS, COUNTED_PROCESS, MODERN)},
            **{row.name: step for row in (STEP, STEP_FAST)},
            **{row.name: loss for row in (LOSS, LOSS_FAST, SPRINT_LOSS, COUNTED_LOSS, MODERN_LOSS, NETWORK_LOSS)},
            **{row.name: process.memory for row in (MEMORY, MODERN_MEMORY)},
            SPRINT.name: training,
        }

    return measure_lite, measure_nanogpt


def step_milliseconds(run: ng.Run) -> float:
    """The median milliseconds per step of a run."""
    clock: list[tuple[int, float]] = [(0, 0.0)]
    clock += [(record["step"], record["seconds"]) for record in run.metrics if record["kind"] == "step"]
    return median(1000 * (end - begin) / (last - first) for (first, begin), (last, end) in pairwise(clock))


def compare_losses(harness: Harness) -> bool:
    """Train from nanoGPT's initial weights on its batches, and print the losses of both; returns whether they agree."""
    path = harness.folder / "parity.pt"
    length = [f"--max_iters={PARITY_STEPS - 1}", f"--lr_decay_iters={RECIPE_STEPS}"]  # nanoGPT does one step more
    more = ["--dtype=float32", f"--out_dir={harness.folder / 'out'}"]
    harness.probe("record_nanogpt", path, *README_COMMAND, *length, *more)
    recorded: dict[str, Any] = torch.load(path, weights_only=True)  # written by `probe`; executes no code
    options = {"device": "cpu", "dtype": "float32", "log_interval": 1, "eval_interval": RECIPE_STEPS}
    state = init_state(ng.TrainConfig.from_dict({**ng.PRESETS["cpu"], **options}), harness.dataset.tokenizer)
    state.model.load_state_dict(recorded["initial"])
    records = loop.train_loop(
        state,
        harness.dataset.train,
        harness.dataset.val,
        out_dir=harness.folder,
        train_batches=iter(recorded["batches"]),
    )
    steps = islice((record for record in records if isinstance(record, StepRecord)), PARITY_STEPS)
    differences = []
    print("step  nanogpt_lite  nanoGPT       relative difference")
    for record, loss in zip(steps, recorded["losses"], strict=True):
        differences.append(abs(record.loss - loss) / loss)
        print(f"{record.step:4}  {record.loss:.9f}   {loss:.9f}   {differences[-1]:.1e}")
    equal = all(difference <= PARITY_LIMIT for difference in differences)
    print(f"the largest difference, {max(differences):.1e}, is {'within' if equal else 'above'} {PARITY_LIMIT:.0e}")
    return equal


if __name__ == "__main__":
    sys.exit(main())
