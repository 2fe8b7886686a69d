"""The tables of the benchmark on a GPU, as they arrive from the container, and their files on this machine."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

from nanogpt_lite.errors import ExternalError

RESULTS_DIR = "benchmarks/results"


class BenchmarkTable(TypedDict):
    """A table of all that has been measured so far. `name`: of its files, without the suffix."""

    name: str
    json: str
    markdown: str


def write_tables(tables: Iterable[BenchmarkTable], folder: Path) -> Path:
    """Write each table to NAME.json and NAME.md in a folder, in place of the one before; the path of the last NAME.md.

    `ExternalError` if there is none. Ctrl-C is a `KeyboardInterrupt` that names the table so far.
    """
    last = None
    try:
        for table in tables:
            path = folder / f"{table['name']}.md"
            _write(path.with_suffix(".json"), table["json"])
            _write(path, table["markdown"])
            if last and last != path:  # that of an incomplete table
                last.unlink()
                last.with_suffix(".json").unlink()
            last = path
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"what was measured is in {last}" if last else "nothing was measured yet") from None
    if last is None:
        raise ExternalError("nothing was measured; the error is printed above. Correct the cause and try again")
    return last


def _write(path: Path, text: str) -> None:
    """Write a file; what was there before stays until all of it is on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # not `files.atomic_write`, whose locks need a package beside modal
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
