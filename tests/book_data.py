"""A text with characters outside ASCII, the datasets made from it, and what nanoGPT makes of it."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from nanogpt_lite.data import sources
from nanogpt_lite.data.sources import TextSource

TEXT = "Now is the winter of our discontent – made glorious summer ☀ by this sun of York.\r\n" * 3
OTHER_TEXT = TEXT.upper()
SET_NAMES = ["manifest.json", "tokenizer.json", "train.bin", "val.bin"]  # the same on every machine
CACHE_NAME = "fingerprints.json"  # which may be rewritten or deleted at any time
FILE_NAMES = [CACHE_NAME, *SET_NAMES]
LONG_AGO = 10**18  # ns; a file of that time has been unchanged for long


def write_book(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write `TEXT` to book.txt in `folder`, and make that the current folder."""
    monkeypatch.chdir(folder)
    path = folder / "book.txt"
    path.write_bytes(TEXT.encode())
    return path


def nanogpt_bins(text: str, dtype: type = np.uint16) -> dict[str, bytes]:
    """What nanoGPT's data/shakespeare_char/prepare.py writes; the code is copied from there."""
    chars = sorted(set(text))
    stoi = {ch: i for i, ch in enumerate(chars)}
    n = len(text)
    splits = {"train.bin": text[: int(n * 0.9)], "val.bin": text[int(n * 0.9) :]}
    return {name: np.array([stoi[c] for c in split], dtype=dtype).tobytes() for name, split in splits.items()}


def read_bins(folder: Path) -> dict[str, bytes]:
    """The contents of train.bin and val.bin."""
    return {name: (folder / name).read_bytes() for name in ("train.bin", "val.bin")}


def file_names(folder: Path) -> list[str]:
    """The sorted names in a folder, which may be missing."""
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def fingerprints(folder: Path) -> dict[str, tuple[int, int]]:
    """The inode number and time of last modification of each file in a folder, without the cache."""
    paths = [path for path in folder.iterdir() if path.name != CACHE_NAME]
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


def set_time(*paths: Path, ns: int = LONG_AGO) -> None:
    """Set the time of last modification of files."""
    for path in paths:
        os.utime(path, ns=(ns, ns))


def replace_unnoticed(path: Path, content: bytes) -> None:
    """Write other content of the same size, and set the time of last modification back to what it was."""
    before = path.stat()
    path.write_bytes(content)
    assert path.stat().st_size == before.st_size
    set_time(path, ns=before.st_mtime_ns)


def change_token(content: bytes, *, new: int | None = None, index: int = 5) -> bytes:
    """The content of a .bin file with another token: the one after it, unless `new` is given."""
    ids = np.frombuffer(content, "<u2").copy()
    ids[index] = ids[index + 1] if new is None else new
    assert ids.tobytes() != content
    return ids.tobytes()


def downgrade(folder: Path) -> None:
    """Make of a prepared folder what version 0.1 wrote."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    for key in ("checksums", "distinct_characters", "val_bytes"):
        del manifest[key]
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    (folder / CACHE_NAME).unlink()


def replace_source(monkeypatch: pytest.MonkeyPatch, *readings: Callable[[], Iterator[str]]) -> None:
    """Make every dataset a text named "text" whose n-th reading is the n-th of `readings`."""
    remaining = iter(readings)
    source = TextSource("text", "the text", lambda: next(remaining)())
    monkeypatch.setattr(sources, "find_source", lambda *_, **__: source)
