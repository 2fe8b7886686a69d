"""Tables that compare two programs: rows with targets, a line about the machine, JSON and Markdown.

What is measured, and how: see the benchmark that writes the table.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import mean, median
from typing import Any

import nanogpt_lite as ng
from nanogpt_lite import files
from nanogpt_lite.device import devices

Values = Mapping[str, float]
"""The values that one run of one program measured, by the name of the row."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table: what is measured, its unit, a note about the measurement, and a target."""

    part: str
    name: str
    unit: str
    note: str
    least_ratio: float | None = None  # how many times better than nanoGPT
    most: float | None = None  # upper limit of nanogpt_lite's own value

    def ratio(self, lite: float, nanogpt: float) -> float:
        """How many times better nanogpt_lite is: a rate is better if it is higher, all else if it is lower."""
        return lite / nanogpt if self.unit.endswith("/s") else nanogpt / lite

    def target(self) -> str:
        """The target as text, empty if there is none."""
        if self.least_ratio is not None:
            return f"ratio ≥ {self.least_ratio:g}"
        return f"nanogpt_lite ≤ {self.most:g}" if self.most is not None else ""

    def met(self, lite: float, nanogpt: float | None) -> bool | None:
        """Whether the target is met; None without a target. `nanogpt` is None if nanoGPT has no such feature."""
        if self.least_ratio is not None and nanogpt is not None:
            return self.ratio(lite, nanogpt) >= self.least_ratio
        return lite <= self.most if self.most is not None else None

    def line(self, lite: Sequence[Values], nanogpt: Sequence[Values]) -> dict[str, Any]:
        """The row as JSON, from the runs of both programs, if there are any: the medians, and the value of each run."""
        lite_runs, nanogpt_runs = (
            [values[self.name] for values in runs if self.name in values] for runs in (lite, nanogpt)
        )
        lite_median, nanogpt_median = (median(values) if values else None for values in (lite_runs, nanogpt_runs))
        ratio = met = None
        if lite_median is not None:
            ratio = self.ratio(lite_median, nanogpt_median) if nanogpt_median else None
            met = self.met(lite_median, nanogpt_median)
        return {
            "name": self.name,
            "unit": self.unit,
            "nanogpt_lite": lite_median,
            "nanogpt": nanogpt_median,
            "ratio": ratio,
            "target": self.target(),
            "met": met,
            "note": self.note,
            "nanogpt_lite_runs": lite_runs,
            "nanogpt_runs": nanogpt_runs,
        }


def exit_status(benchmark: Callable[[], None]) -> int:
    """Run a benchmark; 0 if it succeeds, 1 after a failure outside the program, 2 after a mistake of the user."""
    try:
        benchmark()
    except (ng.UserError, ng.ExternalError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ng.UserError) else 1
    return 0


def describe_environment(command: str, clone: Path | None = None, *, threads: int = 0) -> dict[str, Any]:
    """The command, the machine and the versions of a measurement.

    `clone` is the folder of nanoGPT, if it is used; `threads` as of the option.
    """
    return {
        "command": command,
        "machine": {"cpu": _cpu_model(), "cores": os.cpu_count(), "threads": devices.resolve_threads(threads)},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "numpy")},
            "nanogpt_lite": ng.__version__,
            **({"nanoGPT": commit_of(clone)} if clone else {}),
        },
    }


def machine_line(report: dict[str, Any]) -> str:
    """The result of `describe_environment` in one line."""
    machine, versions = report["machine"], report["versions"]
    versions_text = ", ".join(f"{name} {number}" for name, number in versions.items())
    device = f"{machine['device']}; " if machine.get("device", "cpu") != "cpu" else ""
    cores = f"{machine['cores']} cores, {machine['threads']} threads"
    return f"{device}{machine['cpu']}, {cores}; {versions_text}; `{report['command']}`"


def save(report: dict[str, Any], text: str, out: Path) -> None:
    """Write `report` to OUT.json and `text` to OUT.md."""
    out.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(out.with_name(f"{out.name}.json"), report)
    with files.atomic_write(out.with_name(f"{out.name}.md")) as temporary:
        temporary.write_text(text, encoding="utf-8")


def markdown(report: dict[str, Any]) -> str:
    """The rows as a Markdown table, with their notes.

    A row may also have an `estimate` of nanogpt_lite's value, and a `reason` why a value is missing.
    """
    columns = {"nanogpt_lite": "nanogpt_lite", "estimate": "estimate", "nanogpt": "nanoGPT"}
    if not any(row.get("estimate") for row in report["rows"]):
        del columns["estimate"]
    lines = [
        machine_line(report),
        "",
        f"| row | unit | {' | '.join(columns.values())} | ratio | target | |",
        f"|---|---|{'---:|' * len(columns)}---:|---|---|",
    ]
    for row in report["rows"]:
        values = ["" if row.get(name) is None else _formatted(row[name], row) for name in columns]
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        verdict = {True: "met", False: "missed", None: ""}[row["met"]]
        remarks = "; ".join(filter(None, [verdict, row.get("reason", "").replace("|", "/")]))
        cells = [row["name"], row["unit"], *values, ratio, row["target"], remarks]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Medians. A ratio above 1 is better than nanoGPT.", ""]
    lines += [f"- {row['name']}: {row['note']}{_spread(row)}" for row in report["rows"]]
    return "\n".join(lines) + "\n"


def _formatted(value: float, row: Mapping[str, Any]) -> str:
    return f"{value:,.{4 if row['unit'] == 'nats' else 1}f}"


def _spread(row: Mapping[str, Any]) -> str:
    """The mean of the runs, the lowest and the highest, of each program that ran several times; else empty."""
    spreads = []
    for program, runs in (("nanogpt_lite", row["nanogpt_lite_runs"]), ("nanoGPT", row["nanogpt_runs"])):
        if len(runs) > 1:
            average, lowest, highest = (_formatted(value, row) for value in (mean(runs), min(runs), max(runs)))
            spreads.append(f"{program}, {len(runs)} runs: mean {average}, {lowest} to {highest}")
    return f" ({'; '.join(spreads)})" if spreads else ""


def commit_of(clone: Path) -> str:
    """The commit of a clone, with "-dirty" if its files were changed; "unknown" without git."""
    if not (clone / ".git").exists() or not shutil.which("git"):
        return "unknown"
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}  # so that git does not write to the clone
    result = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True)
    return result.stdout.strip() or "unknown"


def _cpu_model() -> str:
    """The name of the processor, as the operating system gives it."""
    info = Path("/proc/cpuinfo")
    match = (
        re.search(r"^model name\s*:\s*(.+)$", info.read_text(encoding="utf-8"), re.MULTILINE)
        if info.is_file()
        else None
    )
    return match[1] if match else platform.processor() or platform.machine()
