"""A table of what two programs took: its rows, the line over it that says how it came about, JSON and Markdown.

What is measured, and how, is the business of the benchmark that writes the table.
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
from statistics import median
from typing import Any

import nanogpt_lite as ng
from nanogpt_lite import files
from nanogpt_lite.device import devices

Values = Mapping[str, float]
"""What one run of one program gave for each row, by the row's name."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row: what is measured, in which unit, what to know about it, and what is hoped for."""

    part: str
    name: str
    unit: str
    note: str
    least_ratio: float | None = None  # how many times better than nanoGPT
    most: float | None = None  # of our own value

    def ratio(self, ours: float, theirs: float) -> float:
        """How many times better ours is: a rate is better if it is higher, anything else if it is lower."""
        return ours / theirs if self.unit.endswith("/s") else theirs / ours

    def target(self) -> str:
        """What is hoped for, in words."""
        if self.least_ratio is not None:
            return f"ratio ≥ {self.least_ratio:g}"
        return f"nanogpt_lite ≤ {self.most:g}" if self.most is not None else ""

    def met(self, ours: float, theirs: float | None) -> bool | None:
        """Whether the target is met; None if there is none. `theirs` is None where nanoGPT has no such thing."""
        if self.least_ratio is not None and theirs is not None:
            return self.ratio(ours, theirs) >= self.least_ratio
        return ours <= self.most if self.most is not None else None

    def line(self, ours: Sequence[Values], theirs: Sequence[Values]) -> dict[str, Any]:
        """The row from the runs of both programs: medians, and each run's value."""
        our_runs, their_runs = (
            [values[self.name] for values in runs if self.name in values] for runs in (ours, theirs)
        )
        our_median, their_median = median(our_runs), median(their_runs) if their_runs else None
        return {
            "name": self.name,
            "unit": self.unit,
            "nanogpt_lite": our_median,
            "nanogpt": their_median,
            "ratio": self.ratio(our_median, their_median) if their_median else None,
            "target": self.target(),
            "met": self.met(our_median, their_median),
            "note": self.note,
            "nanogpt_lite_runs": our_runs,
            "nanogpt_runs": their_runs,
        }


def exit_status(work: Callable[[], None]) -> int:
    """Do the work: 0 if it was done, 1 at a fault of the world, 2 at a mistake of the user."""
    try:
        work()
    except (ng.UserError, ng.ExternalError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ng.UserError) else 1
    return 0


def circumstances(command: str, clone: Path | None = None) -> dict[str, Any]:
    """How, on what and with what it was measured; `clone` is the folder of nanoGPT, if that was."""
    return {
        "command": command,
        "machine": {"cpu": _cpu_model(), "cores": os.cpu_count(), "threads": devices.resolve_threads(0)},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "numpy")},
            "nanogpt_lite": ng.__version__,
            **({"nanoGPT": _commit(clone)} if clone else {}),
        },
    }


def machine_line(report: dict[str, Any]) -> str:
    """What `circumstances` gave, in one line."""
    machine, versions = report["machine"], report["versions"]
    shown = ", ".join(f"{name} {number}" for name, number in versions.items())
    device = f"{machine['device']}; " if machine.get("device", "cpu") != "cpu" else ""
    cores = f"{machine['cores']} cores, {machine['threads']} threads"
    return f"{device}{machine['cpu']}, {cores}; {shown}; `{report['command']}`"


def save(report: dict[str, Any], text: str, out: Path) -> None:
    """Write OUT.json from `circumstances` and "rows", and OUT.md."""
    out.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(out.with_name(f"{out.name}.json"), report)
    out.with_name(f"{out.name}.md").write_text(text, encoding="utf-8")


def markdown(report: dict[str, Any]) -> str:
    """The rows of both programs."""
    lines = [
        machine_line(report),
        "",
        "| row | unit | nanogpt_lite | nanoGPT | ratio | target | |",
        "|---|---|---:|---:|---:|---|---|",
    ]
    for row in report["rows"]:
        digits = 4 if row["unit"] == "nats" else 1
        both = ["" if row[name] is None else f"{row[name]:,.{digits}f}" for name in ("nanogpt_lite", "nanogpt")]
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        verdict = {True: "met", False: "missed", None: ""}[row["met"]]
        cells = [row["name"], row["unit"], *both, ratio, row["target"], verdict]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Medians. A ratio above 1 is better than nanoGPT.", ""]
    lines += [f"- {row['name']}: {row['note']}" for row in report["rows"]]
    return "\n".join(lines) + "\n"


def _cpu_model() -> str:
    """The processor's name, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.is_file() else None
    return found[1] if found else platform.processor() or platform.machine()


def _commit(clone: Path) -> str:
    """The commit of a clone, with "-dirty" if its files were changed since; "unknown" where git does not tell."""
    if not (clone / ".git").exists() or not shutil.which("git"):
        return "unknown"
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}  # so that git writes nothing there
    told = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True)
    return told.stdout.strip() or "unknown"
