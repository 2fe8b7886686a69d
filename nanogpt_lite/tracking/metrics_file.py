"""Sinks for records: what a person sees while it runs, and the metrics file.

Everything for people goes to standard error; results, which `cli` prints, go to standard output.
"""

import errno
import json
import math
import os
from pathlib import Path
from typing import Any, NoReturn

from nanogpt_lite import files
from nanogpt_lite.tracking.records import (
    Record,
)

LINE_PREFIX = b'{"kind"'  # with which every line of a metrics file begins


class MetricsFile:
    """One JSON object a line. A line is written by one call; what does not end with a newline is no line yet."""

    def __init__(self, path: Path, *, keep_until: int = -1) -> None:
        """Append to what the file holds up to step `keep_until`; -1: begin anew."""
        kept = [record for record in read_metrics(path) if record["step"] <= keep_until]
        with files.atomic_write(path) as temporary:
            temporary.write_bytes(b"".join(map(_to_line, kept)))
        self._path = path
        self._file = path.open("ab", buffering=0)

    def write(self, record: Record) -> None:
        """Append one record. `OSError` if the disk is full; no part of the line is left then."""
        line = _to_line(record.to_json())
        handle = self._file.fileno()
        try:
            written = os.write(handle, line)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        if written < len(line):
            os.ftruncate(handle, os.fstat(handle).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))

    def close(self) -> None:
        """Nothing follows."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records in a metrics file, oldest first; none if there is no file. What is no whole record does not count."""
    records = []
    if path.is_file():
        for line in path.read_bytes().splitlines():
            try:
                record = json.loads(line, parse_constant=_reject_constant, parse_float=_parse_finite)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict) and _is_record(record):
                records.append(record)
    return records


def _is_record(content: dict[str, Any]) -> bool:
    """Whether a JSON object has what is drawn and compared of a record of its kind, in numbers."""
    needed = {"step": ("loss", "learning_rate"), "eval": ("val_loss", "best_val_loss")}
    names = needed.get(str(content.get("kind")), ())
    numbers = all(type(content.get(name)) in (int, float) for name in names)
    return "kind" in content and type(content.get("step")) is int and numbers


def _reject_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number of JSON")


def _parse_finite(digits: str) -> float:
    return float(digits) if math.isfinite(float(digits)) else _reject_constant(digits)


def _to_line(record: dict[str, Any]) -> bytes:
    return json.dumps(record, allow_nan=False).encode() + b"\n"
