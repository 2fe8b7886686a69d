"""nanogpt_lite and nanoGPT in turn on one GPU: the speed of a step, trainings, samples, memory; and the GPU's tests.

    python benchmarks/on_gpu.py --nanogpt nanoGPT                        # on a GPU of your own
    modal run modal_app.py::benchmark                                    # on a rented one
    benchmarks/gpu.sh nanoGPT                                            # within 8 minutes, with scaling.py
    python benchmarks/on_gpu.py --nanogpt nanoGPT --device cpu --short   # a quick check without a GPU

The table is saved after each part. A part that fails, or that the time does not suffice for, leaves its reason in the
table, and the next one is measured. What is measured: see `gpu_rows`; how: `gpu_parts`.
"""

import argparse
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from estimates import ESTIMATES, read_estimates
from gpu_parts import Part, make_parts
from gpu_rows import NANOGPT, Measurements
from gpu_tests import Outcome, run_gpu_tests
from harness import Harness, require_clone, set_up_lite, set_up_nanogpt
from table import describe_environment, exit_status, markdown, save

import nanogpt_lite as ng
from nanogpt_lite import files
from nanogpt_lite.device import devices

RESULTS = Path(__file__).resolve().parent / "results"
SECONDS = 40 * 60
MAX_SHARE = 0.5  # of the time that one part may take: the next ones are not lost if it hangs
MIN_SECONDS = 20  # a part is not started with less
INCOMPLETE = "-incomplete"  # in the name of a table whose parts are still being measured

Report = dict[str, Any]


def main() -> int:
    """Run the benchmark; returns the exit status, which is 1 if a part or a test failed."""
    parser = argparse.ArgumentParser(description="Compare nanogpt_lite with nanoGPT on a GPU.", allow_abbrev=False)
    parser.add_argument("--nanogpt", type=Path, required=True, help="a clone of nanoGPT, which is not changed")
    parser.add_argument("--device", default="cuda", help="(default: %(default)s)")
    parser.add_argument("--short", action="store_true", help="a tiny network and few steps, as a quick check")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="end after this time (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="write on_gpu-DEVICE.json and .md into this folder")
    args = parser.parse_args()
    try:
        return exit_status(lambda: measure(args))
    except KeyboardInterrupt:
        print(
            f"interrupted; the parts that were measured are in a file …{INCOMPLETE}.md in {args.out}", file=sys.stderr
        )
        return 130


def measure(args: argparse.Namespace) -> None:
    """Measure each part, and save the table after each. `ExternalError` at the end if one failed."""
    require_clone(args.nanogpt)
    with tempfile.TemporaryDirectory(prefix="on_gpu_") as folder:
        for report in measure_parts(Path(folder), args):
            name = result_name(report)
            text = f"{markdown(report)}\n{Outcome(**report['tests'])}\n"
            save(report, text, args.out / (name if report["complete"] else name + INCOMPLETE))
    for suffix in (".json", ".md"):
        (args.out / f"{name}{INCOMPLETE}{suffix}").unlink(missing_ok=True)
    print(text, end="")
    if failed := [*report["failures"], *report["tests"]["failed"]]:
        raise ng.ExternalError(f"{len(failed)} parts or tests failed: {', '.join(failed)}")


def measure_parts(folder: Path, args: argparse.Namespace) -> Iterator[Report]:
    """The table after each part."""
    end = time.monotonic() + args.seconds
    device = devices.device_name(devices.resolve_device(args.device))
    words = ["--nanogpt", "nanoGPT", "--device", args.device, *(["--short"] if args.short else [])]
    report: Report = describe_environment(shlex.join(["python", "benchmarks/on_gpu.py", *words]), args.nanogpt)
    report["machine"]["device"] = device
    measurements, estimates = Measurements(), {} if args.short else read_estimates(ESTIMATES, device)
    report |= {"short": args.short, "complete": False, "seconds": {}, "failures": []}
    harness = set_up_lite(folder, device=args.device)
    problem = _set_up_nanogpt(harness, args.nanogpt)
    report["tests"] = run_gpu_tests(harness.environment, _limit(end, args.seconds)).to_json()
    for part in (parts := make_parts(short=args.short)):
        begin = time.monotonic()
        print(f"{part.program}: {part.name}", file=sys.stderr)
        if end - begin < MIN_SECONDS:
            measurements.note_no_time(part.program, part.rows)
        elif failure := _measure(
            part, replace(harness, deadline=begin + _limit(end, args.seconds)), problem, measurements
        ):
            print(f"failed: {failure}", file=sys.stderr)
            report["failures"].append(f"{part.program}: {part.name}")
        report["seconds"][f"{part.program}: {part.name}"] = round(time.monotonic() - begin, 1)
        report["rows"] = measurements.rows(estimates)
        report["complete"] = part is parts[-1]
        yield report


def _set_up_nanogpt(harness: Harness, clone: Path) -> str:
    """Set up nanoGPT; why that failed, empty if it did not."""
    try:
        set_up_nanogpt(harness, clone)
    except ng.ExternalError as error:
        return str(error)
    return ""


def _measure(part: Part, harness: Harness, nanogpt_problem: str, measurements: Measurements) -> str:
    """Measure a part; why that failed, empty if it did not."""
    try:
        if part.program == NANOGPT and nanogpt_problem:
            raise ng.ExternalError(nanogpt_problem)
        measurements.add(part.program, part.rows, part.measure(harness))
    except ng.ExternalError as error:
        measurements.add_failure(part.program, part.rows, f"…{str(error)[-160:]}")  # its end is the reason
        return str(error)
    return ""


def _limit(end: float, seconds: float) -> float:
    """The seconds that a part may take which starts now; all take `seconds` at most, until `end`."""
    return max(0.0, min(end - time.monotonic(), MAX_SHARE * seconds))


def result_name(report: Report) -> str:
    """The name of the files: that of the GPU is in it, so that another one has files of its own."""
    device = files.safe_name(report["machine"]["device"].removeprefix("NVIDIA "), "gpu")
    return f"on_gpu-{device}{'-short' if report['short'] else ''}"


if __name__ == "__main__":
    sys.exit(main())
