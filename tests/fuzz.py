"""Try damaged and meaningless inputs on all that the program reads, in parallel processes, and print what was tried.

    python tests/fuzz.py --inputs 20000

Each input must be accepted, or refused with a clear error (`UserError` or `ExternalError`). A failure is any other
exception, a crash, a hang, 2 GiB more memory (Linux), or code in the input that is executed. It is reported with the
command that repeats this one input, and does not stop the others. Exit status 0: no failures; 1: failures; 130: Ctrl-C,
after which the table shows the inputs so far.
"""

import argparse
import os
import shlex
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Never

from fuzzing.campaign import Campaign, Tally, Targets, make_tasks
from fuzzing.registry import TARGETS
from fuzzing.worker import STARTING, Failure
from tqdm import tqdm

IN_MEMORY = Path("/dev/shm")  # where Linux has a file system in memory


def main(argv: Sequence[str] | None = None, targets: Targets = TARGETS) -> int:
    """Run a campaign; the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = parse_arguments(argv, targets)
    chosen = [target for target in targets if not arguments.only or target.name in arguments.only]
    # one thread for each process, set before PyTorch is imported there
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    started, interrupted = time.monotonic(), False
    with (
        tempfile.TemporaryDirectory(dir=IN_MEMORY if IN_MEMORY.is_dir() else None) as folder,
        tqdm(total=arguments.inputs, unit=" inputs", smoothing=0.05, disable=None) as bar,
    ):
        campaign = Campaign(
            make_tasks(chosen, seed=arguments.seed, first=arguments.first, inputs=arguments.inputs),
            processes=min(arguments.processes, arguments.inputs),
            folder=Path(folder),
            timeout=arguments.timeout,
            report=lambda failure: bar.write(describe(failure, arguments.seed), file=sys.stderr),
            progress=lambda number: show_progress(bar, number),
        )
        try:
            campaign.run()
        except KeyboardInterrupt:
            interrupted = True
    print(format_report(campaign.tallies, targets, argv, time.monotonic() - started))
    if campaign.causes:
        print(format_causes(campaign.causes))
    if interrupted:
        remaining = arguments.first + arguments.inputs - (campaign.unfinished or 0)
        print(f"interrupted; continue with --first {campaign.unfinished} --inputs {remaining}", file=sys.stderr)
        return 130
    return 1 if campaign.causes else 0


def show_progress(bar: "tqdm[Never]", number: int) -> None:
    """Move the bar to a number of inputs."""
    bar.update(number - bar.n)


def parse_arguments(argv: Sequence[str], targets: Targets) -> argparse.Namespace:
    """The options of the command."""
    names = [target.name for target in targets]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=_count, default=20_000, help="number of inputs (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="position of the first one, to continue a campaign")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other inputs (default: %(default)s)")
    parser.add_argument("--processes", type=_count, default=os.cpu_count(), help="(default: %(default)s, the cores)")
    parser.add_argument("--timeout", type=float, default=30, help="seconds until an input hangs (default: %(default)s)")
    parser.add_argument(
        "--only",
        metavar="TARGET",
        action="append",
        choices=names,
        help=f"only this target, repeatable: {', '.join(names)}",
    )
    return parser.parse_args(argv)


def describe(failure: Failure, seed: int) -> str:
    """A failure as text, with the command that repeats it."""
    number = max(failure.number, 0)
    what = "cannot start" if failure.number == STARTING else f"failed on input {number}"
    command = f"python tests/fuzz.py --seed {seed} --only {failure.target} --first {number} --inputs 1"
    return f"\n{failure.target} {what}: {failure.cause}\n{failure.details.rstrip()}\nrepeat it with: {command}\n"


def format_causes(causes: Mapping[tuple[str, str], int]) -> str:
    """The failures, those with the same cause together."""
    lines = [f"- {target}, {number:,} times: {cause}" for (target, cause), number in Counter(causes).most_common()]
    return "\n".join(["Failures:", "", *lines])


def format_report(tallies: Mapping[str, Tally], targets: Targets, argv: Sequence[str], seconds: float) -> str:
    """The table as Markdown, the command, the machine and the versions."""
    sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
    from table import describe_environment, machine_line

    rows = [(target.name, tallies[target.name]) for target in targets if target.name in tallies]
    total = Tally(*(sum(getattr(tally, name) for _, tally in rows) for name in ("accepted", "refused", "failed")))
    total.seconds = sum(tally.seconds for _, tally in rows)
    lines = [
        "| target | inputs | accepted | refused with a clear error | failures | inputs/s and process |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, tally in [*rows, ("all", total)]:
        numbers = (tally.inputs, tally.accepted, tally.refused, tally.failed)
        rate = f"{tally.inputs / tally.seconds:,.0f}" if tally.seconds else ""
        lines.append(f"| {' | '.join([name, *(f'{number:,}' for number in numbers), rate])} |")
    command = shlex.join(["python", "tests/fuzz.py", *argv])
    environment = machine_line(describe_environment(command))
    return "\n".join([*lines, "", f"{total.inputs:,} inputs in {seconds:,.0f} s; {environment}"])


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


if __name__ == "__main__":
    raise SystemExit(main())
