"""How the time and memory of a training step grow, compared with a lower bound from the machine's speed.

    python benchmarks/scaling.py                       # nanoGPT's recipe for a CPU, one option varied at a time
    python benchmarks/scaling.py --dtype bfloat16
    python benchmarks/scaling.py --device cuda --preset shakespeare_char

The lower bound ("floor") of a step is the time of its matrix products at the speed of a large product on this machine,
plus the time of the optimizer's memory traffic at the speed of a large copy. Run nothing else on the machine meanwhile.
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
from table import describe_environment, exit_status, machine_line, save

import nanogpt_lite as ng
from nanogpt_lite.config.options import NetworkConfig, TrainConfig
from nanogpt_lite.config.schema import Value
from nanogpt_lite.device import devices
from nanogpt_lite.model.gpt import GPT

RESULTS = Path(__file__).resolve().parent / "results"
STEPS, LOGGED, WARM_UP = 45, 5, 2  # steps of a run, the log interval, and the number of first log lines left out
ADAMW_BYTES = 7 * 4  # per parameter: weight, gradient and two moments are read, all but the gradient are written

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
    """Run the benchmark; returns the exit status."""
    return exit_status(lambda: measure(parse_arguments()))


def parse_arguments() -> argparse.Namespace:
    """The command line. `UserError` for invalid values."""
    parser = argparse.ArgumentParser(
        description="Time and memory of a training step, and a lower bound.", allow_abbrev=False
    )
    parser.add_argument("--preset", default="cpu", help="source of all other options (default: %(default)s)")
    parser.add_argument("--device", default="cpu", choices=sorted(AXES), help="(default: %(default)s)")
    parser.add_argument("--dtype", default="float32", help="dtype of the computation (default: %(default)s)")
    parser.add_argument("--only", nargs="+", help="options to vary (default: all)")
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md (default: named by device and dtype)")
    args = parser.parse_args()
    args.out = args.out or RESULTS / f"scaling_{args.device}_{args.dtype}"
    axes = AXES[args.device]
    args.only = args.only or list(axes)
    if unknown := [name for name in args.only if name not in axes]:
        raise ng.UserError(f"--only has {unknown[0]!r}, which is not varied; give some of: {', '.join(axes)}")
    return args


def measure(args: argparse.Namespace) -> None:
    """Vary one option at a time, and save the table after each point."""
    words = ["--preset", args.preset, "--device", args.device, "--dtype", args.dtype, "--only", *args.only]
    report = {**describe_environment(shlex.join(["python", "benchmarks/scaling.py", *words])), "rows": []}
    device = devices.resolve_device(args.device)
    report["machine"]["device"] = devices.device_name(device)
    report["flops_per_second"] = matmul_speed(device, devices.DTYPES[args.dtype])
    report["bytes_per_second"] = copy_speed(device)
    with tempfile.TemporaryDirectory(prefix="scaling_") as folder:
        data = ng.prepare("shakespeare_char", out_dir=Path(folder) / "data" / "shakespeare_char")
        for axis in args.only:
            for value in AXES[args.device][axis]:
                options: dict[str, Value] = {"device": args.device, "dtype": args.dtype, "max_iters": STEPS}
                ranks = value if axis == "ranks" else 1
                if axis != "ranks":
                    options[axis] = value
                config = TrainConfig.from_dict({**ng.PRESETS[args.preset], **options})
                row = train(Path(folder), {"preset": args.preset, **options}, ranks)
                row |= {
                    "axis": axis,
                    "value": value,
                    "floor": lower_bound(config, data.tokenizer.vocab_size, ranks, report),
                }
                report["rows"].append(row)
                print(f"{axis} {value}: {row['step']:.1f} ms, {row['memory']:.0f} MB", file=sys.stderr)
                save(report, markdown(report), args.out)
    print(markdown(report), end="")


def train(folder: Path, options: dict[str, Value], ranks: int) -> dict[str, float]:
    """The milliseconds per step, and the peak memory of the process in MB."""
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
    torchrun = ["-m", "torch.distributed.run", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    command = [sys.executable, *torchrun, "-m", "nanogpt_lite", "train", *words, "--overwrite"]
    environment = {**os.environ, **({"OMP_NUM_THREADS": str(max(1, devices.resolve_threads(0) // ranks))})}
    run = launch(command, folder, environment)
    records = [json.loads(line) for line in (out_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    seconds = [record["seconds"] for record in records if record["kind"] == "step"][WARM_UP:]
    step = median(1000 * (after - before) / LOGGED for before, after in pairwise(seconds))
    return {"step": step, "memory": run.memory}


def lower_bound(config: TrainConfig, vocab_size: int, ranks: int, report: dict[str, Any]) -> float:
    """Lower bound of a step in milliseconds: ranks share the matrix products, each runs the whole optimizer step."""
    model = GPT(config.subset(NetworkConfig), vocab_size)
    matmul_seconds = config.tokens_per_step * model.flops_per_token() / report["flops_per_second"]
    seconds: float = matmul_seconds + ranks * model.num_parameters() * ADAMW_BYTES / report["bytes_per_second"]
    return 1000 * seconds


def matmul_speed(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large matrix product."""
    size = 2048 if device.type == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / _median_seconds(lambda: a @ b, device)


def copy_speed(device: torch.device, n_floats: int = 2**26) -> float:
    """Bytes per second, read and written, of a large copy."""
    source = torch.randn(n_floats, device=device)
    target = torch.empty_like(source)
    return 2 * 4 * n_floats / _median_seconds(lambda: target.copy_(source), device)


def _median_seconds(function: Callable[[], Any], device: torch.device, repeats: int = 15) -> float:
    """The median time of a call, after three calls to warm up."""
    durations = []
    for _ in range(3 + repeats):
        devices.synchronize(device)
        start = time.perf_counter()
        function()
        devices.synchronize(device)
        durations.append(time.perf_counter() - start)
    return median(durations[3:])


def markdown(report: dict[str, Any]) -> str:
    """The table, and the measured speeds that the lower bound is computed from."""
    lines = [
        machine_line(report),
        "",
        f"Floor: matrix products at {report['flops_per_second'] / 1e9:,.0f} GFLOP/s, "
        f"copies at {report['bytes_per_second'] / 1e9:,.1f} GB/s, both measured in this run.",
        "",
        "| option | value | step, ms | floor, ms | ratio | memory, MB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in report["rows"]:
        ratio = row["step"] / row["floor"]
        cells = f"{row['step']:.1f} | {row['floor']:.1f} | {ratio:.1f} | {row['memory']:,.0f}"
        lines.append(f"| {row['axis']} | {row['value']} | {cells} |")
    lines += [
        "",
        "Memory is the peak of the process, without GPU memory; with several ranks, the largest of them.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
