"""A prepared text on disk: a folder that is written once, opened, and known from others.

It holds train.bin and val.bin (raw little-endian ids, as nanoGPT writes them), tokenizer.json and manifest.json. Which
text and which tokenizer it is to be, is the business of `datasets`.
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
"""Of a file: which one it is, its length in bytes, and when it was last changed."""

FROM_RUN = "of a run"  # a tokenizer that was not chosen by its name
READ_TOKENS = 2**20  # tokens


@dataclass(frozen=True)
class Dataset:
    """A prepared text. `train` and `val` are read-only memory maps of token ids, shape (tokens,).

    They are for who wants to look at them: a run reads the files (`integrity.guarded`).
    """

    path: Path
    source: str  # what `prepare` was given: with it a run finds its data again
    tokenizer: Tokenizer
    sha256: str  # of the text, as UTF-8
    train: Ids
    val: Ids
    stamps: tuple[FileFingerprint, ...]  # of the two files, from before they were opened

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.path.name

    def __repr__(self) -> str:
        return (
            f"Dataset({str(self.path)!r}: {len(self.train):,} train and {len(self.val):,} val tokens, "
            f"{self.tokenizer.vocab_size} symbols)"
        )

    @property
    def bins(self) -> tuple[Path, Path]:
        """The files of `train` and `val`."""
        return _split_paths(self.path)

    def read(self) -> Iterator[Ids]:
        """All tokens from first to last, in pieces that are read from the files: of a map all pages would stay."""
        for path in self.bins:
            with path.open("rb") as file:
                while len(ids := np.fromfile(file, self.train.dtype, READ_TOKENS)):
                    yield ids


def write_dataset(
    folder: Path,
    source: TextSource,
    text: TextStats,
    tokenizer: Tokenizer,
    chosen: str,
    report: ProgressCallback | None,
) -> None:
    """Write a prepared folder. Its manifest says "complete": false from before the first change to after the last."""
    dtype = np.dtype(id_dtype(tokenizer.vocab_size)).newbyteorder("<")
    files.remove_temp_files(folder, *(path.name for path in _split_paths(folder)), "tokenizer.json", "manifest.json")
    with ExitStack() as stack:
        train, val = (stack.enter_context(files.atomic_write(folder / f"{split}.bin")) for split in ("train", "val"))
        tokens = encode_splits(source, text, tokenizer, dtype, train, val, report)
        manifest = {
            "complete": True,
            "source": source.label,
            "sha256": text.sha256,
            "characters": text.characters,
            "train_share": TRAIN_FRACTION,
            "tokenizer": chosen,
            "vocab_size": tokenizer.vocab_size,
            "dtype": dtype.base.name,
            "train_tokens": tokens[0],
            "val_tokens": tokens[1],
        }
        _require_no_unknown_files(folder, {"train.bin": train, "val.bin": val})
        files.write_json(folder / "manifest.json", {**manifest, "complete": False})
        files.write_json(folder / "tokenizer.json", tokenizer.to_json())
    files.write_json(folder / "manifest.json", manifest)


def open_dataset(folder: Path, asked: str) -> Dataset | None:
    """A folder that was prepared to the end, else None."""
    manifest = _read_json(folder / "manifest.json")
    tokenizer = _read_json(folder / "tokenizer.json")
    if not isinstance(manifest, dict) or manifest.get("complete") is not True:
        return None
    try:
        dtype = np.dtype({"uint16": "<u2", "uint32": "<u4"}[manifest["dtype"]])
        stamps = tuple(fingerprint(path.stat()) for path in _split_paths(folder))
        train, val = (np.asarray(np.memmap(path, dtype, mode="r")) for path in _split_paths(folder))
        whole = [len(train), len(val)] == [manifest["train_tokens"], manifest["val_tokens"]]
        unchanged = _read_json(folder / "manifest.json") == manifest  # nobody began to write in the meantime
        if whole and unchanged:
            return Dataset(folder, asked, tokenizer_from_json(tokenizer), str(manifest["sha256"]), train, val, stamps)
    except (KeyError, TypeError, ValueError, OSError):
        pass  # damaged: to be prepared again
    return None


def is_prepared_dir(folder: Path) -> bool:
    """Whether this program prepared the folder, or began to."""
    manifest = _read_json(folder / "manifest.json")
    return isinstance(manifest, dict) and "complete" in manifest


def has_run_tokenizer(folder: Path) -> bool:
    """Whether a folder was prepared for the weights of another run, whose tokenizer nobody chose for this text."""
    manifest = _read_json(folder / "manifest.json")
    return isinstance(manifest, dict) and manifest.get("tokenizer") == FROM_RUN


def fingerprint(found: os.stat_result) -> FileFingerprint:
    """By what a change of a file can be seen without reading it."""
    return found.st_ino, found.st_size, found.st_mtime_ns


def _require_no_unknown_files(folder: Path, bins: dict[str, Path]) -> None:
    """`UserError` if the folder holds files that this program did not write, and would replace by other ones."""
    if is_prepared_dir(folder):
        return
    foreign = [folder / name for name, new in bins.items() if _differs(folder / name, new)]
    # JSON that cannot be read counts as ours, damaged
    if _read_json(folder / "manifest.json") is not None:
        foreign.append(folder / "manifest.json")
    tokenizer = _read_json(folder / "tokenizer.json")
    if tokenizer is not None and not (_is_tokenizer_json(tokenizer)):
        foreign.append(folder / "tokenizer.json")
    if foreign:
        raise UserError(
            f"{foreign[0]} holds other data, which this program did not write; move it away, or give another folder: "
            "nanogpt-lite prepare --dataset … --out_dir …"
        )


def _is_tokenizer_json(form: Any) -> bool:
    kind = form.get("type") if isinstance(form, dict) else None
    return isinstance(kind, str) and (kind in ("char", "byte") or is_bpe_name(kind))


def _differs(old: Path, new: Path) -> bool:
    return old.exists() and not filecmp.cmp(old, new, shallow=False)


def _split_paths(folder: Path) -> tuple[Path, Path]:
    return folder / "train.bin", folder / "val.bin"


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
