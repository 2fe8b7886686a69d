"""manifest.json of a prepared dataset: what it was made of, and the checksums of its files.

It is the same wherever and whenever a text is prepared. See `dataset` for the folder that it is in.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nanogpt_lite import files
from nanogpt_lite.data.encoding import EncodedSplit, TextStats
from nanogpt_lite.data.sources import TRAIN_FRACTION, TextSource
from nanogpt_lite.tokenizers.base import Tokenizer

NAME = "manifest.json"
RUN_TOKENIZER = "of a run"  # "tokenizer" in the manifest when the tokenizer came from another run, not from its name


class DamagedError(Exception):
    """A dataset is incomplete or damaged."""


class Manifest(NamedTuple):
    """What manifest.json says, with types that were checked; see the fields of `dataset.Dataset`."""

    dtype: "np.dtype[Any]"
    n_tokens: tuple[object, object]  # of train.bin and val.bin
    sha256: str
    checksums: dict[str, str] | None
    distinct_characters: int | None
    val_characters: int | None
    val_bytes: int | None


def make_manifest(
    source: TextSource,
    stats: TextStats,
    tokenizer: Tokenizer,
    tokenizer_option: str,
    dtype: "np.dtype[Any]",
    splits: tuple[EncodedSplit, EncodedSplit],
) -> dict[str, object]:
    """The manifest of a complete dataset. `tokenizer_option`: the option's value, or `RUN_TOKENIZER`."""
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
        "val_bytes": val.n_bytes,
    }
    checksums = {"train.bin": train.sha256, "val.bin": val.sha256, "tokenizer": tokenizer_sha256(tokenizer)}
    return {**manifest, "checksums": {**checksums, "manifest": _manifest_sha256(manifest)}}


def parse_manifest(manifest: object) -> Manifest:
    """What a manifest says. `DamagedError` if it is not one of a complete dataset."""
    if not isinstance(manifest, dict) or manifest.get("complete") is not True:
        raise DamagedError
    dtype, sha256 = manifest.get("dtype"), manifest.get("sha256")
    if dtype not in ("uint16", "uint32") or not isinstance(sha256, str):
        raise DamagedError
    n_chars = _parse_count(manifest.get("characters"))  # of the whole text
    return Manifest(
        np.dtype(dtype).newbyteorder("<"),
        (manifest.get("train_tokens"), manifest.get("val_tokens")),
        sha256,
        _parse_checksums(manifest) if "checksums" in manifest else None,
        _parse_count(manifest.get("distinct_characters")),
        None if n_chars is None else n_chars - int(n_chars * TRAIN_FRACTION),
        _parse_count(manifest.get("val_bytes")),
    )


def is_prepared_dir(folder: Path) -> bool:
    """Whether `dataset.write_dataset` wrote the folder, completely or in part."""
    manifest = files.read_json(folder / NAME)
    return isinstance(manifest, dict) and "complete" in manifest


def has_run_tokenizer(folder: Path) -> bool:
    """Whether a folder was prepared with the tokenizer of another run, which was not chosen for this text."""
    manifest = files.read_json(folder / NAME)
    return isinstance(manifest, dict) and manifest.get("tokenizer") == RUN_TOKENIZER


def tokenizer_sha256(tokenizer: Tokenizer) -> str:
    """The SHA-256 of a tokenizer's canonical JSON: the same for two tokenizers that give the same ids."""
    return files.json_sha256(tokenizer.to_json())


def _parse_checksums(manifest: dict[str, Any]) -> dict[str, str]:
    """The checksums of the files. `DamagedError` if that of the manifest itself is wrong."""
    checksums = manifest["checksums"]
    try:
        is_right = isinstance(checksums, dict) and checksums.get("manifest") == _manifest_sha256(manifest)
    except (ValueError, RecursionError):  # it holds NaN, or is nested too deeply: this program writes neither
        is_right = False
    if not is_right:
        raise DamagedError
    return {name: checksum for name, checksum in checksums.items() if name != "manifest"}


def _parse_count(value: object) -> int | None:
    """A number of characters or bytes; None if the manifest has none, as one of an earlier version."""
    return value if isinstance(value, int) and value > 0 else None


def _manifest_sha256(manifest: dict[str, Any]) -> str:
    """The SHA-256 of a manifest without the keys that are written after it."""
    return files.json_sha256({key: value for key, value in manifest.items() if key not in ("complete", "checksums")})
