"""The tests that need a GPU, run by pytest in a process of its own, and their outcome."""

import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from harness import launch

import nanogpt_lite as ng
from nanogpt_lite.errors import shorten

ROOT = Path(__file__).resolve().parents[1]
# without the options of pyproject.toml, which are for pytest-xdist: it need not be installed here
PYTEST_OPTIONS = ["-m", "gpu", "-p", "no:cacheprovider", "-o", "addopts="]


@dataclass(frozen=True)
class Outcome:
    """How many tests passed and were skipped, and why others failed."""

    passed: int = 0
    skipped: int = 0
    failed: dict[str, str] = field(default_factory=dict)  # by the name of the test
    reason: str = ""  # why there is no outcome

    def __str__(self) -> str:
        if self.reason:
            return f"Tests that need a GPU: not run ({self.reason})"
        counts = f"{self.passed} passed, {len(self.failed)} failed, {self.skipped} skipped"
        failures = [f"- {name}: {message}" for name, message in self.failed.items()]
        return "\n".join([f"Tests that need a GPU: {counts}", *failures])

    def to_json(self) -> dict[str, Any]:
        """The outcome as a JSON object."""
        return asdict(self)


def files_with_gpu_tests() -> list[str]:
    """The files that have tests for a GPU: others may need packages that are not here."""
    return sorted(str(path) for path in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in path.read_text("utf-8"))


def run_gpu_tests(environment: Mapping[str, str], timeout: float) -> Outcome:
    """Run the tests that are marked `gpu`, for at most so many seconds."""
    with tempfile.TemporaryDirectory(prefix="gpu_tests_") as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", *PYTEST_OPTIONS, f"--junitxml={report}", *files_with_gpu_tests()]
        try:
            launch(command, ROOT, dict(environment), timeout)
        except ng.ExternalError as error:
            if not report.is_file():  # without pytest, or after the time: a failed test is in the report
                return Outcome(reason=f"…{str(error)[-160:]}")
        return read_outcome(report)


def read_outcome(report: Path) -> Outcome:
    """The outcome of the tests in a file that pytest's option `--junitxml` wrote."""
    failed: dict[str, str] = {}
    passed = skipped = 0
    for case in ElementTree.parse(report).iter("testcase"):
        problem = case.find("failure") if case.find("failure") is not None else case.find("error")
        if problem is not None:
            failed[f"{case.get('classname')}::{case.get('name')}"] = shorten(problem.get("message", ""))
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
    return Outcome(passed, skipped, failed)
