"""The prepared dataset on disk: a folder with train.bin, val.bin, tokenizer.json and manifest.json.

The .bin files are raw little-endian ids, as nanoGPT writes them. What they were made of is in the `manifest`; what
holds on this machine alone is in `fingerprints`. This module writes such a folder, opens it, and tells it from folders
of other programs. See `preparation` for the choice of text and tokenizer, and `verification` for the check of the ids.
"""

import filecmp
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nanogpt_lite import files
from nanogpt_lite.config.options import is_tokenizer_name
from nanogpt_lite.data import fingerprints, folder_names
from nanogpt_lite.data.download import ProgressCallback
from nanogpt_lite.data.encoding import TextStats, encode_splits
from nanogpt_lite.data.fingerprints import FileFingerprint
from nanogpt_lite.data.manifest import DamagedError, is_prepared_dir, make_manifest, parse_manifest, tokenizer_sha256
from nanogpt_lite.data.sources import TextSource
from nanogpt_lite.errors import UserError
from nanogpt_lite.tokenizers.base import Ids, Tokenizer, id_dtype
from nanogpt_lite.tokenizers.registry import tokenizer_from_json

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
    val_characters: int | None  # in the val split's text; None if the manifest is damaged
    val_bytes: int | None  # of that text in UTF-8; None if version 0.2 or earlier prepared it, see `val_text_size`

    @property
    def name(self) -> str:
        """The name of its folder, without the hash of a run's tokenizer. A new run is called NAME-N."""
        return folder_names.without_hash(self.path.name, self.tokenizer)

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
            yield from self._read(path)

    def read_val(self) -> Iterator[Ids]:
        """The ids of val.bin alone, in chunks."""
        return self._read(self.bins[1])

    def _read(self, path: Path) -> Iterator[Ids]:
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
    """Encode a text and write its folder. `tokenizer_option`: the option's value, or `manifest.RUN_TOKENIZER`.

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
        manifest = make_manifest(source, stats, tokenizer, tokenizer_option, dtype, splits)
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
        stored = parse_manifest(manifest)
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
            stored.val_characters,
            stored.val_bytes,
        )
    except (DamagedError, UserError, FileNotFoundError):  # the caller prepares it again
        return None


def val_text_size(dataset: Dataset) -> tuple[int, int]:
    """The size of the val split's text: characters, and bytes in UTF-8.

    With it, a loss per token becomes one per character or byte, which does not depend on the tokenizer. The ids are
    read only if an earlier version prepared the dataset. They must have been verified.
    """
    if dataset.val_characters is not None and dataset.val_bytes is not None:
        return dataset.val_characters, dataset.val_bytes
    decoder, n_chars, n_bytes = dataset.tokenizer.decoder(), 0, 0
    for ids in dataset.read_val():
        text = decoder.decode(ids)  # the split ends with a whole character
        n_chars += len(text)
        n_bytes += len(text.encode("utf-8"))
    return n_chars, n_bytes


def tokens_record(sha256: str, tokenizer: Tokenizer, bins: Sequence[FileFingerprint]) -> dict[str, object]:
    """What `fingerprints` keeps when the ids in two .bin files, decoded, are the text with this SHA-256."""
    content: dict[str, object] = {"sha256": sha256, "tokenizer": tokenizer_sha256(tokenizer)}
    for name, (inode, size, modified_at) in zip(BIN_NAMES, bins, strict=True):
        content[name] = {"inode": inode, "bytes": size, "mtime_ns": modified_at}
    return content


def _open_bin(path: Path, dtype: "np.dtype[Any]") -> Ids:
    """A memory map of a .bin file. `DamagedError` if its size is not one of whole ids, or if it is empty."""
    try:
        return np.asarray(np.memmap(path, dtype, mode="r"))
    except ValueError:
        raise DamagedError from None


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
