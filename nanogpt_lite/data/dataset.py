"""The prepared dataset on disk: a folder with train.bin, val.bin, tokenizer.json and manifest.json.

The .bin files are raw little-endian ids, as nanoGPT writes them. The manifest is the same wherever and whenever a text
is prepared; what holds on this machine alone is in `fingerprints`. This module writes such a folder, opens it, and
tells it from folders of other programs. See `preparation` for the choice of text and tokenizer, and `verification` for
the check of the ids.
"""

import filecmp
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nanogpt_lite import files
from nanogpt_lite.config.options import is_tokenizer_name
from nanogpt_lite.data import fingerprints
from nanogpt_lite.data.download import ProgressCallback
from nanogpt_lite.data.encoding import EncodedSplit, TextStats, encode_splits
from nanogpt_lite.data.fingerprints import FileFingerprint
from nanogpt_lite.data.sources import TRAIN_FRACTION, TextSource
from nanogpt_lite.errors import UserError
from nanogpt_lite.tokenizers.base import Ids, Tokenizer, id_dtype
from nanogpt_lite.tokenizers.registry import tokenizer_from_json

RUN_TOKENIZER = "of a run"  # "tokenizer" in the manifest when the tokenizer came from another run, not from its name
BIN_NAMES = ("train.bin", "val.bin")
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
    checksums: dict[str, str] | None  # SHA-256 of the .bin files and the tokenizer; None if version 0.1 prepared it
    distinct_characters: int | None  # in the text; None if version 0.1 prepared it

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


class _DamagedError(Exception):
    """A dataset is incomplete or damaged."""


class _Manifest(NamedTuple):
    """What manifest.json says, with types that were checked; see the fields of `Dataset`."""

    dtype: "np.dtype[Any]"
    n_tokens: tuple[object, object]  # of train.bin and val.bin
    sha256: str
    checksums: dict[str, str] | None
    distinct_characters: int | None


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

    While files are replaced, the manifest says "complete": false. The ids count as checked: they are hashed while they
    are written. `UserError` if the folder holds files that another program wrote, `ExternalError` if the text has
    changed since `stats` were collected.
    """
    dtype = np.dtype(id_dtype(tokenizer.vocab_size)).newbyteorder("<")
    files.remove_temp_files(folder, *BIN_NAMES, "tokenizer.json", "manifest.json", fingerprints.NAME)
    with ExitStack() as stack:
        train, val = (stack.enter_context(files.atomic_write(path)) for path in _bin_paths(folder))
        splits = encode_splits(source, stats, tokenizer, dtype=dtype, train_path=train, val_path=val, report=report)
        written = [fingerprints.fingerprint(path.stat()) for path in (train, val)]
        manifest = _make_manifest(source, stats, tokenizer, tokenizer_option, dtype, splits)
        _require_no_unknown_files(folder, {"train.bin": train, "val.bin": val})
        files.write_json(folder / "manifest.json", {**manifest, "complete": False})
        files.write_json(folder / "tokenizer.json", tokenizer.to_json())
        # The .bin files get their names after this. If the clock has gone on, any change then gives them a later time.
        clock = (folder / "tokenizer.json").stat().st_mtime_ns
    files.write_json(folder / "manifest.json", manifest)
    is_settled = all(modified_at < clock for *_, modified_at in written)
    fingerprints.record(folder, tokens=tokens_record(stats.sha256, tokenizer, written) if is_settled else None)


def open_dataset(folder: Path, *, source: str) -> Dataset | None:
    """The dataset in a folder, or None if there is none, or if it is incomplete or damaged. The ids are not checked.

    `OSError` if a file exists and may not be read.
    """
    manifest = files.read_json(folder / "manifest.json")
    tokenizer = files.read_json(folder / "tokenizer.json")
    try:
        stored = _parse_manifest(manifest)
        bin_fingerprints = tuple(fingerprints.fingerprint(path.stat()) for path in _bin_paths(folder))
        train, val = (_open_bin(path, stored.dtype) for path in _bin_paths(folder))
        is_whole = (len(train), len(val)) == stored.n_tokens
        is_unchanged = files.read_json(folder / "manifest.json") == manifest  # else another program has begun to write
        if not (is_whole and is_unchanged):
            return None
        return Dataset(
            folder,
            source,
            tokenizer_from_json(tokenizer),
            stored.sha256,
            train,
            val,
            bin_fingerprints,
            stored.checksums,
            stored.distinct_characters,
        )
    except (_DamagedError, UserError, FileNotFoundError):  # the caller prepares it again
        return None


def is_prepared_dir(folder: Path) -> bool:
    """Whether `write_dataset` wrote the folder, completely or in part."""
    manifest = files.read_json(folder / "manifest.json")
    return isinstance(manifest, dict) and "complete" in manifest


def has_run_tokenizer(folder: Path) -> bool:
    """Whether a folder was prepared with the tokenizer of another run, which was not chosen for this text."""
    manifest = files.read_json(folder / "manifest.json")
    return isinstance(manifest, dict) and manifest.get("tokenizer") == RUN_TOKENIZER


def tokenizer_sha256(tokenizer: Tokenizer) -> str:
    """The SHA-256 of a tokenizer's canonical JSON: the same for two tokenizers that give the same ids."""
    return _json_sha256(tokenizer.to_json())


def tokens_record(sha256: str, tokenizer: Tokenizer, bins: Sequence[FileFingerprint]) -> dict[str, object]:
    """What `fingerprints` keeps when the ids in two .bin files, decoded, are the text with this SHA-256."""
    content: dict[str, object] = {"sha256": sha256, "tokenizer": tokenizer_sha256(tokenizer)}
    for name, (inode, size, modified_at) in zip(BIN_NAMES, bins, strict=True):
        content[name] = {"inode": inode, "bytes": size, "mtime_ns": modified_at}
    return content


def _make_manifest(
    source: TextSource,
    stats: TextStats,
    tokenizer: Tokenizer,
    tokenizer_option: str,
    dtype: "np.dtype[Any]",
    splits: tuple[EncodedSplit, EncodedSplit],
) -> dict[str, object]:
    """The manifest of a complete dataset."""
    train, val = splits
    manifest = {
        "complete": True,
        "source": source.label,
        "sha256": stats.sha256,
        "characters": stats.n_chars,
        "distinct_characters": len(stats.charset),
        "train_share": TRAIN_FRACTION,
        "tokenizer": tokenizer_option,
        "vocab_size": tokenizer.vocab_size,
        "dtype": dtype.base.name,
        "train_tokens": train.n_tokens,
        "val_tokens": val.n_tokens,
    }
    checksums = {"train.bin": train.sha256, "val.bin": val.sha256, "tokenizer": tokenizer_sha256(tokenizer)}
    return {**manifest, "checksums": {**checksums, "manifest": _manifest_sha256(manifest)}}


def _parse_manifest(manifest: object) -> _Manifest:
    """What a manifest says. `_DamagedError` if it is not one of a complete dataset."""
    if not isinstance(manifest, dict) or manifest.get("complete") is not True:
        raise _DamagedError
    dtype, sha256, distinct = (manifest.get(key) for key in ("dtype", "sha256", "distinct_characters"))
    n_tokens = manifest.get("train_tokens"), manifest.get("val_tokens")
    if dtype not in ("uint16", "uint32") or not isinstance(sha256, str):
        raise _DamagedError
    return _Manifest(
        np.dtype(dtype).newbyteorder("<"),
        n_tokens,
        sha256,
        _parse_checksums(manifest) if "checksums" in manifest else None,
        distinct if isinstance(distinct, int) else None,
    )


def _parse_checksums(manifest: dict[str, Any]) -> dict[str, str]:
    """The checksums of the files. `_DamagedError` if that of the manifest itself is wrong."""
    checksums = manifest["checksums"]
    try:
        is_right = isinstance(checksums, dict) and checksums.get("manifest") == _manifest_sha256(manifest)
    except (ValueError, RecursionError):  # it holds NaN, or is nested too deeply: this program writes neither
        is_right = False
    if not is_right:
        raise _DamagedError
    return {name: checksum for name, checksum in checksums.items() if name != "manifest"}


def _open_bin(path: Path, dtype: "np.dtype[Any]") -> Ids:
    """A memory map of a .bin file. `_DamagedError` if its size is not one of whole ids, or if it is empty."""
    try:
        return np.asarray(np.memmap(path, dtype, mode="r"))
    except ValueError:
        raise _DamagedError from None


def _manifest_sha256(manifest: dict[str, Any]) -> str:
    """The SHA-256 of a manifest without the keys that are written after it."""
    return _json_sha256({key: value for key, value in manifest.items() if key not in ("complete", "checksums")})


def _json_sha256(value: object) -> str:
    return hashlib.sha256(files.canonical_json(value).encode()).hexdigest()


def _require_no_unknown_files(folder: Path, new_bins: dict[str, Path]) -> None:
    """`UserError` if the folder holds files that this program did not write and that would be replaced.

    .bin files equal to the new ones are accepted: nanoGPT's own data can be adopted.
    """
    if is_prepared_dir(folder):
        return
    unknown = [folder / name for name, new in new_bins.items() if _differs(folder / name, new)]
    # JSON that cannot be parsed counts as a damaged file of this program
    if files.read_json(folder / "manifest.json") is not None:
        unknown.append(folder / "manifest.json")
    tokenizer = files.read_json(folder / "tokenizer.json")
    if tokenizer is not None and not _is_tokenizer_json(tokenizer):
        unknown.append(folder / "tokenizer.json")
    cache = files.read_json(folder / fingerprints.NAME)
    if cache is not None and not fingerprints.is_fingerprints_json(cache):
        unknown.append(folder / fingerprints.NAME)
    if unknown:
        raise UserError(
            f"{unknown[0]} holds other data, which this program did not write; move it away, or prepare the text in "
            "another folder: prepare has the option `out_dir`"
        )


def _is_tokenizer_json(content: Any) -> bool:
    kind = content.get("type") if isinstance(content, dict) else None
    return isinstance(kind, str) and is_tokenizer_name(kind)


def _differs(old: Path, new: Path) -> bool:
    return old.exists() and not filecmp.cmp(old, new, shallow=False)


def _bin_paths(folder: Path) -> tuple[Path, Path]:
    train, val = (folder / name for name in BIN_NAMES)
    return train, val
