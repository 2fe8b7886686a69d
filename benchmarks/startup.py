"""How long training, resuming and evaluating take to start on a prepared text, for a short text and a long one.

    python benchmarks/startup.py
    python benchmarks/startup.py --megabytes 1 100

The texts are tiny Shakespeare, repeated with variations. Each start is a process of its own, and is timed from the call
to the first step (or the first batch of the evaluation), so without the import of PyTorch. The texts and the token
ids, four times as large as the longest text, are in the temporary folder while the benchmark runs.
"""

import argparse
import json
import os
import shlex
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from harness import PROBE, launch
from table import describe_environment, exit_status, machine_line, save

import nanogpt_lite as ng
from nanogpt_lite.data import fingerprints

OUT = Path(__file__).resolve().parent / "results" / "startup"
STARTS = {  # name of the row: what `probe.start` does, and what is done to the prepared files before it
    "train": ("train", ""),
    "train, with --verify": ("verify", ""),
    "train, first start after a copy of the folder": ("train", "copy"),
    "resume": ("resume", ""),
    "evaluate": ("evaluate", ""),
}


def main() -> int:
    """Run the benchmark; returns the exit status."""
    return exit_status(lambda: measure(parse_arguments()))


def parse_arguments() -> argparse.Namespace:
    """The command line. `UserError` for invalid values."""
    parser = argparse.ArgumentParser(description="The time until the first step.", allow_abbrev=False)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[1, 1000], help="of the texts (default: 1 1000)")
    parser.add_argument("--repeats", type=int, default=5, help="starts of each kind (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=OUT, help="write OUT.json and OUT.md")
    args = parser.parse_args()
    if min(args.megabytes) < 1 or args.repeats < 1:
        raise ng.UserError("--megabytes and --repeats must be at least 1; give larger numbers")
    return args


def measure(args: argparse.Namespace) -> None:
    """Prepare each text once, then start with each of them in turn."""
    words = ["--megabytes", *map(str, args.megabytes), "--repeats", str(args.repeats)]
    report = describe_environment(shlex.join(["python", "benchmarks/startup.py", *words]))
    with tempfile.TemporaryDirectory(prefix="startup_") as name:
        folders = {size: Path(name) / f"{size}MB" for size in args.megabytes}
        sample = ng.prepare("shakespeare_char", out_dir=Path(name) / "shakespeare_char")
        shakespeare = (sample.tokenizer.decode(sample.train) + sample.tokenizer.decode(sample.val)).encode()
        for size, folder in folders.items():
            folder.mkdir()
            write_text(folder / "text.txt", shakespeare, size * 10**6)
        time.sleep(1.5 * fingerprints.CLOCK_TICK_NS / 1e9)  # a text that was just modified is read again
        report["prepare"] = {str(size): prepare_seconds(folder) for size, folder in folders.items()}
        report["rows"] = [{"name": row, "seconds": {str(size): [] for size in folders}} for row in STARTS]
        for _ in range(args.repeats):
            for line in report["rows"]:
                for size, folder in folders.items():  # in turn, so that other load on the machine meets all sizes
                    line["seconds"][str(size)].append(start_seconds(folder, *STARTS[line["name"]]))
    save(report, markdown(report), args.out)
    print(markdown(report), end="")


def write_text(path: Path, text: bytes, n_bytes: int) -> None:
    """Write `text` again and again, each time numbered and from another position on, until it is of this length."""
    with path.open("wb") as file:
        number = 0
        while file.tell() < n_bytes:
            position = number * 7919 % len(text)
            file.write((b"%d\n" % number + text[position:] + text[:position])[: n_bytes - file.tell()])
            number += 1


def prepare_seconds(folder: Path) -> float:
    """The seconds to prepare the text, once; and the run that is resumed and evaluated."""
    seconds = probe(folder, "prepare")
    probe(folder, "train")
    return seconds


def start_seconds(folder: Path, kind: str, change: str) -> float:
    """The seconds of one start, after the change of the prepared files."""
    if change == "copy":
        data = folder / "data" / "text"
        shutil.copytree(data, folder / "copy", copy_function=shutil.copyfile)
        shutil.rmtree(data)
        (folder / "copy").rename(data)
    return probe(folder, kind)


def probe(folder: Path, kind: str) -> float:
    """The seconds that `probe.start` measures in its own process."""
    os.sync()  # so that the start does not wait until files are written to disk
    run = launch([sys.executable, str(PROBE), "start", kind], folder, dict(os.environ))
    return float(json.loads(run.stdout.splitlines()[-1])["seconds"])


def markdown(report: dict[str, Any]) -> str:
    """The table: the medians of each start, and by how much the longest text is slower than the shortest."""
    sizes = list(report["prepare"])
    lines = [
        machine_line(report),
        "",
        f"| start | {' | '.join(f'{size} MB, s' for size in sizes)} | difference, s |",
        f"|---|{'---:|' * (len(sizes) + 1)}",
    ]
    prepared = [report["prepare"][size] for size in sizes]
    lines.append(f"| prepare, once | {' | '.join(f'{seconds:.2f}' for seconds in prepared)} | |")
    for row in report["rows"]:
        medians = [median(row["seconds"][size]) for size in sizes]
        difference = medians[-1] - medians[0]
        lines.append(f"| {row['name']} | {' | '.join(f'{value:.2f}' for value in medians)} | {difference:.2f} |")
    lines += ["", "Medians. From the call to the first step; of `evaluate`, to the first batch."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
