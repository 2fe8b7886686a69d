"""`metrics.jsonl` of a run: the sink that appends to it, and its reader.

The last line may be incomplete after a kill or on a full disk. Readers ignore it, and resuming removes it.
"""

import dataclasses
import errno
import json
import math
import os
from pathlib import Path
from typing import Any, NoReturn

from nanogpt_lite import files
from nanogpt_lite.tracking.records import Record, ResultRecord

LINE_PREFIX = b'{"kind"'  # every line of a metrics file starts with it


_REQUIRED_NUMBERS = {  # by kind of record
    "step": ("loss", "learning_rate"),
    "eval": ("train_loss", "val_loss", "best_val_loss"),
    "result": tuple(field.name for field in dataclasses.fields(ResultRecord) if field.type in (int, float)),
}


class MetricsFile:
    """One JSON object per line. Each line, with its newline, is written by a single `os.write`."""

    def __init__(self, path: Path, *, keep_until: int = -1) -> None:
        """Keep the records up to step `keep_until`, drop later ones, and append; -1 starts an empty file."""
        kept = [record for record in read_metrics(path) if record["step"] <= keep_until]
        with files.atomic_write(path) as temporary:
            temporary.write_bytes(b"".join(map(_to_line, kept)))
        self._path = path
        self._file = path.open("ab", buffering=0)

    def write(self, record: Record) -> None:
        """Append one record. `OSError` if the disk is full; the file is then as before."""
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
        """Close the file."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records in a metrics file, oldest first; empty without a file. Incomplete and invalid lines are ignored."""
    return parse_metrics(path.read_bytes()) if path.is_file() else []


def parse_metrics(content: bytes) -> list[dict[str, Any]]:
    """The records in the content of a metrics file, as `read_metrics` returns them."""
    records = []
    for line in content.splitlines():
        try:
            record = json.loads(line, parse_constant=_reject_constant, parse_float=_parse_finite)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and _is_record(record):
            records.append(record)
    return records


def _is_record(content: dict[str, Any]) -> bool:
    """Whether a JSON object has a kind, a step, and as numbers the values that plots and comparisons read."""
    names = _REQUIRED_NUMBERS.get(str(content.get("kind")), ())
    has_numbers = all(type(content.get(name)) in (int, float) for name in names)
    return "kind" in content and type(content.get("step")) is int and has_numbers


def _reject_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a JSON number")


def _parse_finite(digits: str) -> float:
    return float(digits) if math.isfinite(float(digits)) else _reject_constant(digits)


def _to_line(record: dict[str, Any]) -> bytes:
    return json.dumps(record, allow_nan=False).encode() + b"\n"
