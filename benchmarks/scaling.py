"""How the time and memory of a training step grow, against what the machine's arithmetic asks for.

    python benchmarks/scaling.py                       # nanoGPT's recipe for a CPU, one thing grown at a time
    python benchmarks/scaling.py --dtype bfloat16
    python benchmarks/scaling.py --device cuda --preset shakespeare_char

The floor of a step is the time of its matrix products at the rate of a large product on this machine, and of reading
and writing what the optimizer reads and writes at the rate of a large copy. Nothing else should use the machine
meanwhile.
"""

import argparse
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from harness import launch
from table import circumstances, exit_status, machine_line, save

import nanogpt_lite as ng
from nanogpt_lite.config.options import NetworkConfig, TrainConfig
from nanogpt_lite.config.schema import Value
from nanogpt_lite.device import devices
from nanogpt_lite.model.gpt import GPT

RESULTS = Path(__file__).resolve().parent / "results"
STEPS, LOGGED, WARM_UP = 45, 5, 2  # steps, those between two lines of the log, the first lines left out
ADAMW_BYTES = 7 * 4  # of a parameter: weight, gradient and two means are read, all but the gradient written

AXES: dict[str, dict[str, list[int]]] = {
    "cpu": {
        "batch_size": [6, 12, 24, 48],
        "block_size": [32, 64, 128, 256, 512],
        "n_embd": [64, 128, 256, 384],
        "n_layer": [2, 4, 8],
        "ranks": [1, 2],
    },
    "cuda": {
        "batch_size": [16, 256],
        "block_size": [256, 1024],
        "n_embd": [192, 768],
        "n_layer": [3, 12],
    },
}


def main() -> int:
    """The exit status."""
    return exit_status(lambda: measure(parse_arguments()))


def parse_arguments() -> argparse.Namespace:
    """The options of this call. `UserError` if they make no sense."""
    parser = argparse.ArgumentParser(description="How a step grows, against arithmetic.", allow_abbrev=False)
    parser.add_argument("--preset", default="cpu", help="what everything else is taken from (default: %(default)s)")
    parser.add_argument("--device", default="cpu", choices=sorted(AXES), help="(default: %(default)s)")
    parser.add_argument("--dtype", default="float32", help="number format (default: %(default)s)")
    parser.add_argument("--only", nargs="+", help="what to grow (default: all)")
    parser.add_argument("--out", type=Path, help="writes OUT.json, OUT.md (default: by device and number format)")
    given = parser.parse_args()
    given.out = given.out or RESULTS / f"scaling_{given.device}_{given.dtype}"
    axes = AXES[given.device]
    given.only = given.only or list(axes)
    if unknown := [name for name in given.only if name not in axes]:
        raise ng.UserError(f"--only has {unknown[0]!r}, which is not grown; give some of: {', '.join(axes)}")
    return given


def measure(given: argparse.Namespace) -> None:
    """Grow one thing at a time, and write the table after each point."""
    words = ["--preset", given.preset, "--device", given.device, "--dtype", given.dtype, "--only", *given.only]
    report = {**circumstances(shlex.join(["python", "benchmarks/scaling.py", *words])), "rows": []}
    device = devices.resolve_device(given.device)
    report["machine"]["device"] = devices.device_name(device)
    report["flops_per_second"] = product_rate(device, devices.DTYPES[given.dtype])
    report["bytes_per_second"] = copy_rate(device)
    with tempfile.TemporaryDirectory(prefix="scaling_") as folder:
        data = ng.prepare("shakespeare_char", out_dir=Path(folder) / "data" / "shakespeare_char")
        for axis in given.only:
            for value in AXES[given.device][axis]:
                options: dict[str, Value] = {"device": given.device, "dtype": given.dtype, "max_iters": STEPS}
                ranks = value if axis == "ranks" else 1
                if axis != "ranks":
                    options[axis] = value
                config = TrainConfig.from_dict({**ng.PRESETS[given.preset], **options})
                row = train(Path(folder), {"preset": given.preset, **options}, ranks)
                row |= {"axis": axis, "value": value, "floor": floor(config, data.tokenizer.vocab_size, ranks, report)}
                report["rows"].append(row)
                print(f"{axis} {value}: {row['step']:.1f} ms, {row['memory']:.0f} MB", file=sys.stderr)
                save(report, markdown(report), given.out)
    print(markdown(report), end="")


def train(folder: Path, options: dict[str, Value], ranks: int) -> dict[str, float]:
    """The milliseconds of a step, and the memory of the process in MB."""
    out_dir = folder / "run"
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    words += [
        "--log_interval",
        str(LOGGED),
        "--eval_interval",
        str(STEPS),
        "--eval_iters",
        "1",
        "--out_dir",
        str(out_dir),
    ]
    several = ["-m", "torch.distributed.run", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    command = [sys.executable, *several, "-m", "nanogpt_lite", "train", *words, "--overwrite"]
    environment = {**os.environ, **({"OMP_NUM_THREADS": str(max(1, devices.resolve_threads(0) // ranks))})}
    ended = launch(command, folder, environment)
    records = [json.loads(line) for line in (out_dir / "metrics.jsonl").read_text().splitlines()]
    clock = [record["seconds"] for record in records if record["kind"] == "step"][WARM_UP:]
    step = median(1000 * (after - before) / LOGGED for before, after in pairwise(clock))
    return {"step": step, "memory": ended.memory}


def floor(config: TrainConfig, vocab_size: int, ranks: int, report: dict[str, Any]) -> float:
    """The milliseconds that a step takes at least: ranks share the products, and each has an optimizer of its own."""
    model = GPT(config.subset(NetworkConfig), vocab_size)
    products = config.tokens_per_step * model.flops_per_token() / report["flops_per_second"]
    seconds: float = products + ranks * model.num_parameters() * ADAMW_BYTES / report["bytes_per_second"]
    return 1000 * seconds


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large product."""
    size = 2048 if device.type == "cpu" else 8192
    one, other = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / _seconds(lambda: one @ other, device)


def copy_rate(device: torch.device, numbers: int = 2**26) -> float:
    """Bytes per second of a large copy, those read and those written."""
    source = torch.randn(numbers, device=device)
    target = torch.empty_like(source)
    return 2 * 4 * numbers / _seconds(lambda: target.copy_(source), device)


def _seconds(work: Callable[[], Any], device: torch.device, times: int = 15) -> float:
    """The median time of some work, once it is warm."""
    taken = []
    for _ in range(3 + times):
        devices.synchronize(device)
        begun = time.perf_counter()
        work()
        devices.synchronize(device)
        taken.append(time.perf_counter() - begun)
    return median(taken[3:])


def markdown(report: dict[str, Any]) -> str:
    """The table, and what the floor was computed from."""
    lines = [
        machine_line(report),
        "",
        f"Floor: products at {report['flops_per_second'] / 1e9:,.0f} GFLOP/s, "
        f"copies at {report['bytes_per_second'] / 1e9:,.1f} GB/s, both measured in this run.",
        "",
        "| grown | to | step, ms | floor, ms | ratio | memory, MB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in report["rows"]:
        ratio = row["step"] / row["floor"]
        figures = f"{row['step']:.1f} | {row['floor']:.1f} | {ratio:.1f} | {row['memory']:,.0f}"
        lines.append(f"| {row['axis']} | {row['value']} | {figures} |")
    lines += [
        "",
        "Memory is the most that the process had, a GPU's not counted; with several ranks, the largest of them.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
