"""fingerprints.json of a dataset: which files need not be read again, because they were read and did not change since.

A file counts as unchanged if its inode, its size and the time of its last modification are the same; so a copy is read
once. The content belongs to one machine, and is only a cache: without it, or if it is damaged, the files are read
again. It is written if the folder can be written. What is compared with what it says: see `preparation` for the text,
`verification` for the token ids.
"""

import contextlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypeGuard

from nanogpt_lite import files

FileFingerprint = tuple[int, int, int]
"""Inode number, size in bytes, and time of last modification (ns) of a file. It shows a change without reading it."""

NAME = "fingerprints.json"
VERSION = 1  # of the content, and of how a text is read from its files
MAX_BYTES = 2**16  # more than the program writes
# A file that changes twice within one tick of the clock has one time of modification. The tick of FAT is 2 s.
CLOCK_TICK_NS = 2 * 10**9


def fingerprint(status: os.stat_result) -> FileFingerprint:
    """The fingerprint of a file, from its `stat`."""
    return status.st_ino, status.st_size, status.st_mtime_ns


def are_settled(fingerprints: Sequence[FileFingerprint]) -> bool:
    """Whether any change of these files from now on changes their fingerprints: none was modified just before.

    This is git's rule for its index ("racy git"). Ask before the files are read.
    """
    now = time.time_ns()
    return all(modified_at < now - CLOCK_TICK_NS for _, _, modified_at in fingerprints)


def text_fingerprint(paths: Sequence[Path]) -> str | None:
    """One fingerprint of all files of a text, in order; None if they have to be read (no files, or not yet settled)."""
    try:
        fingerprints = [fingerprint(path.stat()) for path in paths]
    except OSError:
        return None  # whoever reads the file reports it
    if not paths or not are_settled(fingerprints):
        return None
    entries = [[str(path.absolute()), *entry] for path, entry in zip(paths, fingerprints, strict=True)]
    return files.json_sha256(entries)


def is_recorded(folder: Path, key: str, value: object) -> bool:
    """Whether the file of this folder has this value, made of what JSON has."""
    return _read(folder).get(key) == value


def record(folder: Path, **values: object) -> None:
    """Write values beside those that the file of this folder has. If it cannot be written, nothing happens."""
    old = _read(folder)
    new = {**old, "version": VERSION, **values}
    if new != old:
        with contextlib.suppress(OSError, RecursionError):  # the latter if what was there is nested too deeply
            files.write_json(folder / NAME, new)


def is_fingerprints_json(content: object) -> TypeGuard[dict[str, object]]:
    """Whether this is what `record` writes."""
    return isinstance(content, dict) and content.get("version") == VERSION


def _read(folder: Path) -> dict[str, object]:
    """The content of the file; empty if there is none, or if it is damaged or of another version."""
    try:
        with (folder / NAME).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        content = json.loads(data) if len(data) <= MAX_BYTES else None
    except (OSError, ValueError, RecursionError):
        return {}
    return content if is_fingerprints_json(content) else {}
