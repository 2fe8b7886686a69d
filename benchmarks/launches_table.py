"""The tables of `launches.py`: rows with goals, the parts of a step, and estimates of times."""

from collections.abc import Mapping
from typing import Any

import table
from operators import Gpu
from table import Row

from nanogpt_lite.device.gpus import find_gpu

TOKENS_PER_STEP = 64 * 256  # of both programs
PARTS = ("forward", "backward", "update")
SAMPLES = {"one sample": 1, "ten samples": 10}


def _reaches(name: str, flops: float, bandwidth: float, bandwidth_fraction: float, launch: float) -> Gpu:
    known = find_gpu(name)
    assert known is not None, f"{name} is in the table of GPUs"
    return Gpu(known.peak_flops * flops, bandwidth * bandwidth_fraction, launch)


# Of each GPU: the fraction that it reaches of the rate of dense 16-bit products in its data sheet; the bandwidth of its
# memory there, in bytes per second, and the fraction that it reaches; the seconds of the smallest kernel. The fractions
# and the seconds are assumptions, for products of 384 to 1536 channels. They were measured on none of these GPUs.
GPUS = {
    name: _reaches(name, *values)
    for name, values in {
        "T4": (0.40, 320e9, 0.75, 4e-6),
        "A100 40GB": (0.62, 1555e9, 0.80, 2.5e-6),
        "H100": (0.50, 3.35e12, 0.78, 2e-6),
        "H200": (0.50, 4.8e12, 0.78, 2e-6),
        "B200": (0.45, 8e12, 0.78, 2e-6),
    }.items()
}

_LAUNCH = "a launch is an operator that is no view and does not only allocate"
_INDUCTOR = "of the graphs that Inductor compiles, by its own count"
LAUNCHES = Row(part="eager", name="a step, launches", unit="launches", note=f"shakespeare_char; {_LAUNCH}", most=415)
MODERN = Row(
    part="eager",
    name="a step of modern, launches",
    unit="times shakespeare_char's",
    note="with the update of its two optimizers",
    most=1.7,
)


def _compiled_rows(step: str, options: str, outside: str) -> dict[str, Row]:
    """The rows of a compiled step, by what they show; `outside` says which of its operators are in no graph."""
    goal: Any = {"part": "compiled", "least_ratio": 1}
    more: Any = {"part": "compiled"}
    name = f"{step}, {{}}".format
    return {
        "kernels": Row(
            name=name("kernels in graphs"),
            unit="launches",
            note=f"shakespeare_char with {options}; {_INDUCTOR}",
            **goal,
        ),
        "traffic": Row(name=name("memory traffic of graphs"), unit="GB", note=f"read and written; {_INDUCTOR}", **goal),
        "all launches": Row(
            name=name("all launches"),
            unit="launches",
            note=f"with the operators that are not compiled: {outside}",
            **more,
        ),
        "all traffic": Row(name=name("all memory traffic"), unit="GB", note="the same", **more),
        "generated": Row(
            name=name("kernels to generate"),
            unit="kernels",
            note="what the compilation at the start takes its time for",
            **more,
        ),
    }


COMPILED = {  # by the step of shakespeare_char
    "shakespeare_char, compiled": _compiled_rows(
        "compiled step",
        "--compile True",
        "the update, and in nanogpt_lite the embeddings, the output and the loss, which are outside of the blocks",
    ),
    "shakespeare_char, compiled as a whole": _compiled_rows(
        "step compiled as a whole", "--compile_whole True", "the update"
    ),
}
REPLAYS = Row(part="token", name="a sampled token, graph launches", unit="launches", note="ten texts at once", most=1)
BESIDE = Row(
    part="token", name="a sampled token, other launches", unit="launches", note="beside the copy of the token", most=0
)
WAITS = Row(part="token", name="a sampled token, waits", unit="waits", note="of the processor for the GPU", most=1)
ROWS = (
    LAUNCHES,
    MODERN,
    *(row for rows in COMPILED.values() for row in rows.values()),
    REPLAYS,
    BESIDE,
    WAITS,
)


def markdown(report: dict[str, Any]) -> str:
    """All tables as Markdown."""
    return "\n".join(
        [
            table.markdown(report),
            *_steps(report["steps"]),
            "",
            *_tokens(report["tokens"]),
            "",
            *_estimates(report["steps"], report["tokens"]),
            "",
        ]
    )


def _steps(steps: Mapping[str, dict[str, Any]]) -> list[str]:
    lines = [
        "A training step of 64 x 256 tokens in bfloat16, the second one. *Compiled* is with `--compile True`, "
        "*compiled as a whole* with `--compile_whole True`.",
        "",
        f"| step | {' | '.join(PARTS)} | launches | of them in graphs | GB | graphs | kernels to generate | "
        "copies to the GPU | waits |",
        f"|---|{'---:|' * (len(PARTS) + 7)}",
    ]
    for name, step in steps.items():
        counts = [*(step["launches"][part] for part in PARTS), sum(step["launches"].values()), step["compiled_kernels"]]
        others = [step["graphs"], step["generated_kernels"], step["copies_to_gpu"], step["waits"]]
        cells = [*map(str, counts), f"{step['gigabytes']:.2f}", *map(str, others)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _tokens(tokens: Mapping[str, dict[str, Any]]) -> list[str]:
    lines = [
        "A token of each sample, while the context is not full, with weights in bfloat16.",
        "",
        "| sampled token | graph launches | other launches | copies | waits | kernels in the graph | MB |",
        f"|---|{'---:|' * 6}",
    ]
    for name, token in tokens.items():
        counts = [token[key] for key in ("replays", "other_launches", "copies", "waits", "recorded_kernels")]
        lines.append(f"| {name} | {' | '.join(map(str, counts))} | {token['megabytes']:.1f} |")
    return lines


def _estimates(steps: Mapping[str, dict[str, Any]], tokens: Mapping[str, dict[str, Any]]) -> list[str]:
    head = [f"| | {' | '.join(GPUS)} |", f"|---|{'---:|' * len(GPUS)}"]
    return [
        "Estimates, not measurements, with an error of about 30 %. A kernel takes the longest of three times: its "
        "floating-point operations, its memory traffic, and the time of the smallest kernel. The kernels are those for "
        "an A100; a T4 computes in float16, and attention with another kernel. What each GPU is assumed to reach:",
        "",
        *head,
        _line("16-bit products, TFLOP/s", [f"{gpu.flops / 1e12:.0f}" for gpu in GPUS.values()]),
        _line("memory, GB/s", [f"{gpu.bandwidth / 1e9:,.0f}" for gpu in GPUS.values()]),
        _line("the smallest kernel, µs", [f"{1e6 * gpu.launch:.1f}" for gpu in GPUS.values()]),
        "",
        "Of a step, milliseconds and thousands of tokens per second:",
        "",
        *head,
        *(_line(name, [_step_cell(step["estimated_ms"][gpu]) for gpu in GPUS]) for name, step in steps.items()),
        "",
        _processor_limit(steps),
        "",
        "Of sampling, thousands of tokens per second, of all samples together:",
        "",
        *head,
        *(_line(name, _token_cells(name, token["estimated_ms"])) for name, token in tokens.items()),
    ]


def _line(name: str, cells: list[str]) -> str:
    return f"| {name} | {' | '.join(cells)} |"


def _step_cell(milliseconds: float) -> str:
    return f"{milliseconds:.1f} ({TOKENS_PER_STEP / milliseconds:,.0f})"


def _token_cells(name: str, milliseconds: Mapping[str, float]) -> list[str]:
    samples = SAMPLES[name.split(", ")[1]]
    return [f"{samples / milliseconds[gpu]:.1f}" for gpu in GPUS]


def _processor_limit(steps: Mapping[str, dict[str, Any]]) -> str:
    """For which processors the estimates of steps without compilation do not hold."""
    microseconds = {
        (gpu, name): 1000 * step["estimated_ms"][gpu] / sum(step["launches"].values())
        for name, step in steps.items()
        if not step["graphs"]
        for gpu in GPUS
    }
    (gpu, name), least = min(microseconds.items(), key=lambda item: item[1])
    return (
        f"This holds if the processor starts kernels faster than the GPU computes them. Without compilation, the {gpu} "
        f"needs {least:.0f} µs for a launch of {name} on average, the least of these. PyTorch is assumed to take 5 to "
        "10 µs."
    )
