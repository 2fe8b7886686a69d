"""A text with characters outside ASCII, the datasets made from it, and what nanoGPT makes of it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from nanogpt_lite.data import sources
from nanogpt_lite.data.sources import TextSource

TEXT = "Now is the winter of our discontent – made glorious summer ☀ by this sun of York.\r\n" * 3
OTHER_TEXT = TEXT.upper()
FILE_NAMES = ["manifest.json", "tokenizer.json", "train.bin", "val.bin"]


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
    """The inode number and time of last modification of each file in a folder."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}


def replace_source(monkeypatch: pytest.MonkeyPatch, *readings: Callable[[], Iterator[str]]) -> None:
    """Make every dataset a text named "text" whose n-th reading is the n-th of `readings`."""
    remaining = iter(readings)
    source = TextSource("text", "the text", lambda: next(remaining)())
    monkeypatch.setattr(sources, "find_source", lambda *_, **__: source)
