"""This program and nanoGPT in turn, on the same data and machine: how fast, and whether with the same losses.

    git clone https://github.com/karpathy/nanoGPT
    python benchmarks/vs_nanogpt.py --nanogpt nanoGPT              # the table
    python benchmarks/vs_nanogpt.py --nanogpt nanoGPT --parity     # the same weights and batches: the same losses?

Everything runs on the CPU, which nothing else should use meanwhile. The clone is only read. How the programs are
run is the business of `harness`, what has to happen inside a process of `probe`, the form of the table of `table`.
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
from harness import COMMAND, DATA, README_COMMAND, RECIPE_STEPS, Ended, Harness, networks, require_clone, set_up
from rows import (
    FEWER_SAMPLES,
    FORMATS,
    INT8_LOSS,
    LOSS,
    LOSS_FAST,
    MEMORY,
    MODERN,
    MODERN_LOSS,
    MODERN_MEMORY,
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
from table import Values, circumstances, exit_status, markdown, save

import nanogpt_lite as ng
from nanogpt_lite.tracking.records import StepRecord
from nanogpt_lite.trainer import loop
from nanogpt_lite.trainer.state import init_state

OUT = Path(__file__).resolve().parent / "results" / "vs_nanogpt"
TEXT_SIZE = 100_000_000  # characters, of one byte each
SPRINT_STEPS = 34
PARITY_STEPS = 20
PARITY_LIMIT = 1e-5  # relative difference of a step's loss

Pair = tuple[Callable[[], Values], Callable[[], Values]]
"""How to measure a part of the table once: in this program, and in nanoGPT."""


def main() -> int:
    """The exit status; 1 also if the losses are not nanoGPT's."""
    return exit_status(compare)


def compare() -> None:
    """What this call asks for."""
    given = parse_arguments()
    with tempfile.TemporaryDirectory(prefix="vs_nanogpt_") as folder:
        harness = set_up(Path(folder), given.nanogpt)
        if not given.parity:
            compare_speed(harness, given)
        elif not compare_losses(harness):
            raise ng.ExternalError("the losses are not nanoGPT's")


def parse_arguments() -> argparse.Namespace:
    """The options of this call. `UserError` if they make no sense."""
    parser = argparse.ArgumentParser(description="Compare this program with nanoGPT on a CPU.", allow_abbrev=False)
    parser.add_argument("--nanogpt", type=Path, required=True, help="a clone of nanoGPT; it is only read")
    parser.add_argument("--parity", action="store_true", help=f"only compare the losses of {PARITY_STEPS} steps")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each program, in turn (default: 3)")
    parser.add_argument("--only", default=",".join(PARTS), help="parts to measure (default: %(default)s)")
    parser.add_argument("--max_iters", type=int, default=RECIPE_STEPS, help="training steps (default: %(default)s)")
    parser.add_argument("--sprint", type=int, default=SPRINT_STEPS, help="steps of the sprint (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=OUT, help="writes OUT.json, OUT.md")
    given = parser.parse_args()
    given.only = given.only.split(",")
    for part in given.only:
        if part not in PARTS:
            raise ng.UserError(f"--only has {part!r}, which is no part; give some of {','.join(PARTS)}")
    for name in ("repeats", "max_iters", "sprint"):
        if getattr(given, name) < 1:
            raise ng.UserError(f"--{name} is {getattr(given, name)}; it must be 1 or more")
    require_clone(given.nanogpt)
    return given


def compare_speed(harness: Harness, given: argparse.Namespace) -> None:
    """Measure what was asked for, program by turns, and write and print the table."""
    asked = {
        "repeats": given.repeats,
        "only": ",".join(given.only),
        "max_iters": given.max_iters,
        "sprint": given.sprint,
    }
    options = [word for name, value in asked.items() for word in (f"--{name}", str(value))]
    command = shlex.join(["python", "benchmarks/vs_nanogpt.py", "--nanogpt", "nanoGPT", *options])
    report = {**circumstances(command, given.nanogpt), "rows": []}
    pairs: dict[str, Callable[[Harness], Pair]] = {
        "prepare": prepare,
        "sample": sample,
        "train": partial(train, max_iters=given.max_iters, sprint=given.sprint),
    }
    for part in given.only:
        pair = pairs[part](harness)
        runs: tuple[list[Values], list[Values]] = [], []
        for number in range(given.repeats):
            for program, measure, values in zip(("nanogpt_lite", "nanoGPT"), pair, runs, strict=True):
                values.append(measure())
                shown = ", ".join(f"{name} {value:.4g}" for name, value in values[-1].items())
                print(f"{part} {number + 1}/{given.repeats}, {program}: {shown}", file=sys.stderr)
        report["rows"] += [row.line(*runs) for row in ROWS if row.part == part]
        save(report, markdown(report), given.out)  # after each part: the next one takes long
    print(markdown(report), end="")


def prepare(harness: Harness) -> Pair:
    """A long text's way to tokens."""
    ours, theirs = harness.folder / "prepare" / "ours", harness.folder / "prepare" / "theirs"
    theirs.mkdir(parents=True)
    shutil.copyfile(harness.theirs / DATA / "prepare.py", theirs / "prepare.py")
    source, text = theirs / "input.txt", harness.text
    source.write_bytes((text * (TEXT_SIZE // len(text) + 1))[:TEXT_SIZE])

    def measure_ours() -> Values:
        shutil.rmtree(ours, ignore_errors=True)
        where = ["--dataset", str(source), "--out_dir", str(ours)]
        return {PREPARE.name: TEXT_SIZE / 1e6 / harness.call(harness.ours, *COMMAND, "prepare", *where).seconds}

    def measure_theirs() -> Values:
        seconds = harness.call(theirs, "prepare.py").seconds
        for name in ("train.bin", "val.bin"):
            if not filecmp.cmp(ours / name, theirs / name, shallow=False):
                raise ng.ExternalError(f"{name} differs from what nanoGPT's prepare.py writes")
            (theirs / name).unlink()
        return {PREPARE.name: TEXT_SIZE / 1e6 / seconds}

    return measure_ours, measure_theirs


def sample(harness: Harness) -> Pair:
    """Generation, by networks with the same random weights."""
    ours, theirs = networks(harness)

    def measure_ours() -> Values:
        values, memory = {}, 0.0
        for name in FORMATS:
            for samples, row in (("1", ONE_SAMPLE[name]), ("10", TEN_SAMPLES[name])):
                measured = harness.probe("sample_ours", ours, samples, name, "cpu")
                values[row.name] = measured["tokens_per_second"]
                memory = measured["memory"] if name == "float32" else memory
        return {**values, SAMPLING_MEMORY.name: memory}

    def measure_theirs() -> Values:
        one, some = (harness.probe("sample_theirs", theirs, str(samples), "cpu") for samples in (1, FEWER_SAMPLES))
        return {
            **{row.name: one["tokens_per_second"] for row in ONE_SAMPLE.values()},
            **{row.name: some["tokens_per_second"] for row in TEN_SAMPLES.values()},
            SAMPLING_MEMORY.name: some["memory"],
        }

    return measure_ours, measure_theirs


def train(harness: Harness, *, max_iters: int, sprint: int) -> Pair:
    """NanoGPT's recipe for a CPU from the start of the process to its end, and today's recipe against it."""
    usual = ng.TrainConfig.eval_interval
    interval = max_iters if max_iters % usual else usual  # nanoGPT saves at an evaluation only: one has to come last
    decay = max(max_iters, ng.TrainConfig.warmup_iters + 1)  # without a step of decay nanoGPT divides by zero
    length = [f"--max_iters={max_iters}", f"--lr_decay_iters={decay}"]

    seeds = itertools.count(ng.TrainConfig.seed)  # another one for each repeat

    def evaluate(run: ng.Run, *options: str) -> float:
        where = ["--out_dir", str(run.out_dir), "--checkpoint", "last", "--device", "cpu", "--json"]
        found: float = json.loads(harness.call(harness.ours, *COMMAND, "eval", *where, *options).printed)["val_loss"]
        return found

    def run(name: str, *options: str) -> tuple[Ended, ng.Run]:
        out_dir = harness.ours / "runs" / name
        more = ["--device", "cpu", "--out_dir", str(out_dir), "--overwrite"]
        return harness.call(harness.ours, *COMMAND, "train", *options, *more), ng.Run(out_dir)

    def measure_ours() -> Values:
        ended, exact = run("cpu", "--preset", "cpu", *length)
        _, fast = run("bfloat16", "--preset", "cpu", "--dtype", "bfloat16", *length)
        seed = ("--seed", str(next(seeds)))
        short, sprinted = run("sprint", "--preset", "modern-cpu", "--max_iters", str(sprint), *seed)
        whole, modern = run("modern", "--preset", "modern-cpu", *seed)
        return {
            TRAINING.name: ended.seconds,
            STEP.name: milliseconds(exact),
            LOSS.name: last_evaluation(exact)["val_loss"],
            MEMORY.name: ended.memory,
            STEP_FAST.name: milliseconds(fast),
            LOSS_FAST.name: last_evaluation(fast)["val_loss"],
            SPRINT.name: last_evaluation(sprinted)["seconds"],
            SPRINT_PROCESS.name: short.seconds,
            SPRINT_LOSS.name: last_evaluation(sprinted)["val_loss"],
            MODERN.name: whole.seconds,
            MODERN_LOSS.name: last_evaluation(modern)["val_loss"],
            MODERN_MEMORY.name: whole.memory,
            INT8_LOSS.name: abs(evaluate(modern, "--int8=True") - evaluate(modern)),
        }

    def measure_theirs() -> Values:
        out_dir = harness.theirs / "out"
        # without always_save_checkpoint it keeps the weights that its own estimate finds best, not the last ones
        more = [f"--eval_interval={interval}", "--always_save_checkpoint=True", f"--out_dir={out_dir}"]
        ended = harness.call(harness.theirs, "train.py", *README_COMMAND, *length, *more)
        found = re.findall(r"^iter (\d+): loss .*, time ([\d.]+)ms", ended.printed, re.MULTILINE)
        step = median(float(shown) for _, shown in found)
        # the time of an iteration that begins with an evaluation has that in it
        alone = sum(step if int(number) % interval == 0 else float(shown) for number, shown in found) / 1000
        loss = harness.probe("evaluate_theirs", out_dir / "ckpt.pt", harness.theirs / DATA / "val.bin")["val_loss"]
        return {
            **{row.name: ended.seconds for row in (TRAINING, SPRINT_PROCESS, MODERN)},
            **{row.name: step for row in (STEP, STEP_FAST)},
            **{row.name: loss for row in (LOSS, LOSS_FAST, SPRINT_LOSS, MODERN_LOSS)},
            **{row.name: ended.memory for row in (MEMORY, MODERN_MEMORY)},
            SPRINT.name: alone,
        }

    return measure_ours, measure_theirs


def milliseconds(run: ng.Run) -> float:
    """The median time of a step of a run."""
    clock: list[tuple[int, float]] = [(0, 0.0)]
    clock += [(record["step"], record["seconds"]) for record in run.metrics if record["kind"] == "step"]
    return median(1000 * (end - begin) / (last - first) for (first, begin), (last, end) in pairwise(clock))


def last_evaluation(run: ng.Run) -> dict[str, Any]:
    """What the last evaluation of a run found."""
    found: dict[str, Any] = [record for record in run.metrics if record["kind"] == "eval"][-1]
    return found


def compare_losses(harness: Harness) -> bool:
    """Give nanoGPT's first weights and its batches to our trainer, and print the losses of both: are they equal?"""
    path = harness.folder / "parity.pt"
    length = [f"--max_iters={PARITY_STEPS - 1}", f"--lr_decay_iters={RECIPE_STEPS}"]  # it takes a step more
    more = ["--dtype=float32", f"--out_dir={harness.folder / 'out'}"]
    harness.probe("record_theirs", path, *README_COMMAND, *length, *more)
    recorded: dict[str, Any] = torch.load(path, weights_only=True)  # from `probe`; executes nothing
    options = {"device": "cpu", "dtype": "float32", "log_interval": 1, "eval_interval": RECIPE_STEPS}
    ours = init_state(ng.TrainConfig.from_dict({**ng.PRESETS["cpu"], **options}), harness.dataset.tokenizer)
    ours.model.load_state_dict(recorded["initial"])
    records = loop.train_loop(
        ours,
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
