"""The prepared dataset on disk: a folder with train.bin, val.bin, tokenizer.json and manifest.json.

The .bin files are raw little-endian ids, as nanoGPT writes them. This module writes such a folder, opens it, and tells
it from folders of other programs. See `preparation` for the choice of text and tokenizer, and `verification` for the
check of the ids.
"""

import filecmp
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nanogpt_lite import files
from nanogpt_lite.config.options import is_bpe_name
from nanogpt_lite.data.download import ProgressCallback
from nanogpt_lite.data.encoding import TRAIN_FRACTION, TextStats, encode_splits
from nanogpt_lite.data.sources import TextSource
from nanogpt_lite.errors import UserError
from nanogpt_lite.tokenizers.base import Ids, Tokenizer, id_dtype
from nanogpt_lite.tokenizers.registry import tokenizer_from_json

FileFingerprint = tuple[int, int, int]
"""Inode number, size in bytes, and time of last modification (ns) of a file. It shows a change without reading it."""

RUN_TOKENIZER = "of a run"  # "tokenizer" in the manifest when the tokenizer came from another run, not from its name
CHUNK_TOKENS = 2**20  # tokens read at a time


@dataclass(frozen=True)
class Dataset:
    """A prepared dataset. `train` and `val` are read-only memory maps of token ids, shape (tokens,).

    The maps are for exploring. Training reads the files through `verification.open_verified`, which notices changes.
    """

    path: Path
    source: str  # what to pass to `prepare` to get this dataset again
    tokenizer: Tokenizer
    sha256: str  # of the text in UTF-8
    train: Ids
    val: Ids
    fingerprints: tuple[FileFingerprint, ...]  # of the two .bin files, taken before they were opened

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.path.name

    def __repr__(self) -> str:
        return (
            f"Dataset({str(self.path)!r}: {len(self.train):,} train and {len(self.val):,} val tokens, "
            f"vocab_size={self.tokenizer.vocab_size})"
        )

    @property
    def bins(self) -> tuple[Path, Path]:
        """The paths of train.bin and val.bin."""
        return _bin_paths(self.path)

    def read(self) -> Iterator[Ids]:
        """All ids of train.bin, then of val.bin, in chunks. It reads the files: pages of a map would stay in memory."""
        for path in self.bins:
            with path.open("rb") as file:
                while len(ids := np.fromfile(file, self.train.dtype, CHUNK_TOKENS)):
                    yield ids


def write_dataset(
    folder: Path,
    *,
    source: TextSource,
    stats: TextStats,
    tokenizer: Tokenizer,
    tokenizer_option: str,
    report: ProgressCallback | None,
) -> None:
    """Encode a text and write its folder. `tokenizer_option`: the option's value, or `RUN_TOKENIZER`.

    While files are replaced, the manifest says "complete": false. `UserError` if the folder holds files that another
    program wrote, `ExternalError` if the text has changed since `stats` were collected.
    """
    dtype = np.dtype(id_dtype(tokenizer.vocab_size)).newbyteorder("<")
    files.remove_temp_files(folder, *(path.name for path in _bin_paths(folder)), "tokenizer.json", "manifest.json")
    with ExitStack() as stack:
        train, val = (stack.enter_context(files.atomic_write(path)) for path in _bin_paths(folder))
        train_tokens, val_tokens = encode_splits(
            source, stats, tokenizer, dtype=dtype, train_path=train, val_path=val, report=report
        )
        manifest = {
            "complete": True,
            "source": source.label,
            "sha256": stats.sha256,
            "characters": stats.n_chars,
            "train_share": TRAIN_FRACTION,
            "tokenizer": tokenizer_option,
            "vocab_size": tokenizer.vocab_size,
            "dtype": dtype.base.name,
            "train_tokens": train_tokens,
            "val_tokens": val_tokens,
        }
        _require_no_unknown_files(folder, {"train.bin": train, "val.bin": val})
        files.write_json(folder / "manifest.json", {**manifest, "complete": False})
        files.write_json(folder / "tokenizer.json", tokenizer.to_json())
    files.write_json(folder / "manifest.json", manifest)


def open_dataset(folder: Path, *, source: str) -> Dataset | None:
    """The dataset in a folder, or None if there is none, or if it is incomplete or damaged. The ids are not checked."""
    manifest = _read_json(folder / "manifest.json")
    tokenizer = _read_json(folder / "tokenizer.json")
    if not isinstance(manifest, dict) or manifest.get("complete") is not True:
        return None
    try:
        dtype = np.dtype({"uint16": "<u2", "uint32": "<u4"}[manifest["dtype"]])
        fingerprints = tuple(fingerprint(path.stat()) for path in _bin_paths(folder))
        train, val = (np.asarray(np.memmap(path, dtype, mode="r")) for path in _bin_paths(folder))
        is_whole = [len(train), len(val)] == [manifest["train_tokens"], manifest["val_tokens"]]
        is_unchanged = _read_json(folder / "manifest.json") == manifest  # else another program has begun to write
        if is_whole and is_unchanged:
            sha256 = str(manifest["sha256"])
            return Dataset(folder, source, tokenizer_from_json(tokenizer), sha256, train, val, fingerprints)
    except (KeyError, TypeError, ValueError, OSError):
        pass  # damaged: the caller prepares it again
    return None


def is_prepared_dir(folder: Path) -> bool:
    """Whether `write_dataset` wrote the folder, completely or in part."""
    manifest = _read_json(folder / "manifest.json")
    return isinstance(manifest, dict) and "complete" in manifest


def has_run_tokenizer(folder: Path) -> bool:
    """Whether a folder was prepared with the tokenizer of another run, which was not chosen for this text."""
    manifest = _read_json(folder / "manifest.json")
    return isinstance(manifest, dict) and manifest.get("tokenizer") == RUN_TOKENIZER


def fingerprint(status: os.stat_result) -> FileFingerprint:
    """The fingerprint of a file, from its `stat`."""
    return status.st_ino, status.st_size, status.st_mtime_ns


def _require_no_unknown_files(folder: Path, new_bins: dict[str, Path]) -> None:
    """`UserError` if the folder holds files that this program did not write and that would be replaced.

    .bin files equal to the new ones are accepted: nanoGPT's own data can be adopted.
    """
    if is_prepared_dir(folder):
        return
    unknown = [folder / name for name, new in new_bins.items() if _differs(folder / name, new)]
    # JSON that cannot be parsed counts as a damaged file of this program
    if _read_json(folder / "manifest.json") is not None:
        unknown.append(folder / "manifest.json")
    tokenizer = _read_json(folder / "tokenizer.json")
    if tokenizer is not None and not _is_tokenizer_json(tokenizer):
        unknown.append(folder / "tokenizer.json")
    if unknown:
        raise UserError(
            f"{unknown[0]} holds other data, which this program did not write; move it away, or prepare the text in "
            "another folder: prepare has the option `out_dir`"
        )


def _is_tokenizer_json(content: Any) -> bool:
    kind = content.get("type") if isinstance(content, dict) else None
    return isinstance(kind, str) and (kind in ("char", "byte") or is_bpe_name(kind))


def _differs(old: Path, new: Path) -> bool:
    return old.exists() and not filecmp.cmp(old, new, shallow=False)


def _bin_paths(folder: Path) -> tuple[Path, Path]:
    return folder / "train.bin", folder / "val.bin"


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
