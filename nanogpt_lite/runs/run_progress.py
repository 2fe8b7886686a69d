"""How far a run is, by its files: also of one that another process trains at this moment.

A metrics file grows at its end, and is written anew when a run resumes. `read_more` gives what is new since the last
time, in either case. A cursor is a position in the file, and what is before it.
"""

import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO

from nanogpt_lite import files
from nanogpt_lite.runs.run_files import LOCK_FILE
from nanogpt_lite.runs.run_folder import Run
from nanogpt_lite.tracking import metrics_file
from nanogpt_lite.tracking.records import StopReason

COMPARED_BYTES = 200  # before a position, by which the file is recognised

_looking = threading.Lock()  # a look at a lock takes it for a moment; a second one would take that for a training


class RunState(StrEnum):
    """What a run does."""

    TRAINING = "training"
    FINISHED = "finished"
    INTERRUPTED = "interrupted"  # by Ctrl-C, SIGTERM or the page; its state is saved
    UNFINISHED = "unfinished"  # no process of this machine trains it: it was killed, or is trained elsewhere


def is_training(run: Run) -> bool:
    """Whether a process trains a run now."""
    with _looking:
        return files.is_locked(run.out_dir / LOCK_FILE)


def run_state(records: Sequence[dict[str, Any]], *, was_training: bool) -> RunState:
    """The state of a run with these records. `was_training`: `is_training`, before they were read."""
    if was_training:
        return RunState.TRAINING
    if not records or records[-1]["kind"] != "done":
        return RunState.UNFINISHED
    return RunState.INTERRUPTED if records[-1].get("reason") == StopReason.INTERRUPTED else RunState.FINISHED


def checkpoint_steps(records: Sequence[dict[str, Any]]) -> dict[str, int]:
    """The step of each checkpoint that the records name: `best`, `last`, `early_000005` and so on."""
    return {str(record.get("name")): record["step"] for record in records if record["kind"] == "checkpoint"}


@dataclass(frozen=True)
class NewRecords:
    """The records after a position in a metrics file."""

    records: list[dict[str, Any]]
    cursor: str  # the position after them
    is_whole: bool  # from the beginning: none of those before is valid any more


def read_more(path: Path, cursor: str = "") -> NewRecords:
    """The records in a metrics file after a cursor of an earlier call; all, if the file is another one by now."""
    try:
        with path.open("rb") as file:
            position = _position(cursor, file)
            file.seek(max(position - COMPARED_BYTES, 0))
            content = file.read()
    except FileNotFoundError:
        return NewRecords([], _cursor(0, b""), is_whole=True)
    content = content[: content.rfind(b"\n") + 1]  # without a line that is being written
    before = min(position, COMPARED_BYTES)
    end = position - before + len(content)
    return NewRecords(metrics_file.parse_metrics(content[before:]), _cursor(end, content), is_whole=position == 0)


def _cursor(position: int, content: bytes) -> str:
    """The cursor of a position, with the content that ends there."""
    return f"{position}-{zlib.crc32(content[-COMPARED_BYTES:])}"


def _position(cursor: str, file: BinaryIO) -> int:
    """The position of a cursor in a file; 0 if the file is not the one that it was made for."""
    digits = cursor.partition("-")[0]
    position = int(digits) if digits.isascii() and digits.isdecimal() and len(digits) < 16 else 0
    file.seek(max(position - COMPARED_BYTES, 0))
    content = file.read(min(position, COMPARED_BYTES))
    is_same = len(content) == min(position, COMPARED_BYTES) and _cursor(position, content) == cursor
    return position if is_same else 0
