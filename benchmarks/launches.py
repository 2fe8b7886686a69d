"""Kernel launches, waits and memory traffic of a training step and of a sampled token on a GPU, without a GPU.

    python benchmarks/launches.py --nanogpt nanoGPT

Both programs run on a device that computes nothing (`fake_gpu`), which needs g++ and Linux. What is counted is
exact: which operators PyTorch calls, and which kernels Inductor generates. The times are estimates of a roofline model.
It takes about two minutes.
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from harness import require_clone
from launches_table import (
    BESIDE,
    COMPILED,
    GPUS,
    LAUNCHES,
    MODERN,
    PARTS,
    REPLAYS,
    ROWS,
    WAITS,
    markdown,
)
from operators import Operator, roofline_seconds
from table import describe_environment, exit_status, save

import nanogpt_lite as ng

OUT = Path(__file__).resolve().parent / "results" / "launches"
PROGRAM = Path(__file__).resolve().with_name("fake_launches.py")

CALLS: dict[str, dict[str, Any]] = {
    "nanoGPT": {"function": "nanogpt_step", "compiled": False},
    "nanoGPT, compiled": {"function": "nanogpt_step", "compiled": True},
    **{preset: {"function": "eager_step", "preset": preset} for preset in ("shakespeare_char", "modern")},
    **{
        f"{preset}, {name}": {"function": "compiled_step", "preset": preset, "whole": whole}
        for preset in ("shakespeare_char", "modern")
        for name, whole in {"compiled": False, "compiled as a whole": True}.items()
    },
}
TOKEN_CALLS: dict[str, dict[str, Any]] = {
    f"{preset}, {samples}": {"function": "sampled_token", "preset": preset, "rows": rows}
    for preset in ("shakespeare_char", "modern")
    for samples, rows in {"one sample": 1, "ten samples": 10}.items()
}


def main() -> int:
    """Run the benchmark; returns the exit status."""
    return exit_status(lambda: measure(parse_arguments()))


def parse_arguments() -> argparse.Namespace:
    """The command line. `UserError` for invalid values."""
    parser = argparse.ArgumentParser(
        description="Kernel launches of a step and of a sampled token.", allow_abbrev=False
    )
    parser.add_argument("--nanogpt", type=Path, required=True, help="a clone of nanoGPT")
    parser.add_argument("--out", type=Path, default=OUT, help="write OUT.json and OUT.md (default: %(default)s)")
    args = parser.parse_args()
    require_clone(args.nanogpt)
    if shutil.which("g++") is None or sys.platform != "linux":
        raise ng.UserError("the fake GPU is compiled by g++, on Linux; install g++, such as with `apt install g++`")
    return args


def measure(args: argparse.Namespace) -> None:
    """Count, estimate, and save the table."""
    command = shlex.join(["python", "benchmarks/launches.py", "--nanogpt", args.nanogpt.name])
    steps, tokens = count(args.nanogpt.resolve())
    report = {
        **describe_environment(command, args.nanogpt),
        "rows": check_goals(steps, tokens),
        "steps": {name: summarize_step(step) for name, step in steps.items()},
        "tokens": {name: summarize_token(token) for name, token in tokens.items()},
    }
    text = markdown(report)
    save(report, text, args.out)
    print(text, end="")


def count(clone: Path) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """The results of `fake_launches` for steps and tokens, with `Operator`s. `ExternalError` if it fails."""
    calls = [{**call, **({"clone": str(clone)} if name.startswith("nanoGPT") else {})} for name, call in CALLS.items()]
    run = subprocess.run(
        [sys.executable, str(PROGRAM)],
        input=json.dumps([*calls, *TOKEN_CALLS.values()]),
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        raise ng.ExternalError(f"fake_launches.py ended with status {run.returncode}: {run.stderr[-2000:]}")
    results = json.loads(run.stdout)
    for result in results:
        for name in result.keys() & {"operators", "recorded"}:
            result[name] = [Operator.from_json(content) for content in result[name]]
    return dict(zip(CALLS, results, strict=False)), dict(zip(TOKEN_CALLS, results[len(CALLS) :], strict=True))


def check_goals(steps: dict[str, dict[str, Any]], tokens: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the table with goals."""
    lite: dict[str, float] = {LAUNCHES.name: num_launches(steps["shakespeare_char"]["operators"])}
    nanogpt: dict[str, float] = {LAUNCHES.name: num_launches(steps["nanoGPT"]["operators"])}
    for name, rows in COMPILED.items():
        for values, step in ((lite, name), (nanogpt, "nanoGPT, compiled")):
            values |= {rows[shown].name: value for shown, value in compiled_values(steps[step]).items()}
    token = summarize_token(tokens["shakespeare_char, ten samples"])
    lite[MODERN.name] = num_launches(steps["modern"]["operators"]) / lite[LAUNCHES.name]
    lite |= {REPLAYS.name: token["replays"], BESIDE.name: token["other_launches"], WAITS.name: token["waits"]}
    return [row.line([lite], [nanogpt]) for row in ROWS]


def compiled_values(step: dict[str, Any]) -> dict[str, float]:
    """What is shown of a compiled step, by the keys of its rows."""
    kernels = [operator for operator in step["operators"] if operator.is_compiled]
    return {
        "kernels": len(kernels),
        "traffic": traffic(kernels),
        "all launches": num_launches(step["operators"]),
        "all traffic": traffic(step["operators"]),
        "generated": step["num_generated"],
    }


def num_launches(operators: list[Operator]) -> int:
    """How many kernels are launched."""
    return sum(operator.is_launch for operator in operators)


def traffic(operators: list[Operator]) -> float:
    """What kernels read and write, in GB."""
    return sum(operator.num_bytes for operator in operators if operator.is_launch) / 1e9


def summarize_step(step: dict[str, Any]) -> dict[str, Any]:
    """What the tables show of a step."""
    operators: list[Operator] = step["operators"]
    parts = Counter(operator.part for operator in operators if operator.is_launch)
    return {
        "launches": {part: parts[part] for part in PARTS},
        "compiled_kernels": sum(operator.is_compiled for operator in operators),
        "graphs": step["num_graphs"],
        "generated_kernels": step["num_generated"],
        "copies_to_gpu": sum(o.is_copy_between_devices and o.outputs[0].device != "cpu" for o in operators),
        "waits": sum(operator.is_wait for operator in operators),
        "gigabytes": traffic(operators),
        "estimated_ms": {name: 1000 * roofline_seconds(operators, gpu) for name, gpu in GPUS.items()},
    }


def summarize_token(token: dict[str, Any]) -> dict[str, Any]:
    """What the tables show of a sampled token."""
    operators: list[Operator] = token["operators"]
    copies = [operator for operator in operators if operator.is_copy_between_devices]
    return {
        "replays": token["replays"],
        "other_launches": num_launches(operators) - len(copies),
        "copies": len(copies),
        "waits": token["waits"] + sum(operator.is_wait for operator in operators),
        "recorded_kernels": num_launches(token["recorded"]),
        "megabytes": 1000 * traffic(token["recorded"]),
        "estimated_ms": {name: 1000 * roofline_seconds(token["recorded"], gpu) for name, gpu in GPUS.items()},
    }


if __name__ == "__main__":
    sys.exit(main())
