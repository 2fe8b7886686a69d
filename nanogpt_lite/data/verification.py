"""Checks that the token ids on disk are still those of the prepared text: before a run, and while a run reads them."""

import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from nanogpt_lite.data import fingerprints
from nanogpt_lite.data.dataset import Dataset, tokens_record
from nanogpt_lite.data.download import ProgressCallback
from nanogpt_lite.data.fingerprints import FileFingerprint
from nanogpt_lite.data.manifest import has_run_tokenizer, tokenizer_sha256
from nanogpt_lite.errors import UserError
from nanogpt_lite.tokenizers.base import Ids

CHUNK_BYTES = 2**20  # bytes hashed at a time


def verify_dataset(dataset: Dataset, *, read_all: bool = False, report: ProgressCallback | None = None) -> None:
    """The same as `verify_checksum`, but files that have not changed since the last check are not read.

    `read_all`: read them in any case. What was checked is recorded in fingerprints.json.
    """
    record = _record_of(dataset)
    if not read_all and fingerprints.is_recorded(dataset.path, "tokens", record):
        return
    is_settled = fingerprints.are_settled(dataset.fingerprints)  # asked before the files are read
    verify_checksum(dataset, report)
    if is_settled:
        fingerprints.record(dataset.path, tokens=record)


def verify_checksum(dataset: Dataset, report: ProgressCallback | None = None) -> None:
    """`UserError` unless all ids of a dataset are those of the text that was prepared.

    By the SHA-256 of the files; if version 0.1 prepared them, by that of the text, so the ids are decoded.
    """
    is_right = _has_checksums(dataset, dataset.checksums, report) if dataset.checksums else _is_text(dataset, report)
    if not is_right:
        raise _changed_error(dataset)


def uses_all_tokens(dataset: Dataset) -> bool:
    """Whether each token of a character tokenizer occurs. The ids are read only if version 0.1 prepared the dataset."""
    if dataset.distinct_characters is not None:
        return dataset.distinct_characters == dataset.tokenizer.vocab_size
    record = _record_of(dataset)
    if fingerprints.is_recorded(dataset.path, "uses_all_tokens", record):
        return True
    is_settled = fingerprints.are_settled(dataset.fingerprints)
    is_used = np.zeros(dataset.tokenizer.vocab_size, dtype=bool)
    for ids in dataset.read():
        if int(ids.max()) >= len(is_used):
            return False  # damaged
        is_used[ids] = True
    if is_used.all() and is_settled:
        fingerprints.record(dataset.path, uses_all_tokens=record)
    return bool(is_used.all())


class VerifiedTokens:
    """One split of a dataset for training, read by slices. Each slice is checked: `UserError` if the ids have changed.

    It reads the file instead of a memory map: if the file of a map is truncated, the system kills the process (SIGBUS).
    """

    def __init__(self, dataset: Dataset, file: io.FileIO, tokens: Ids, opened: FileFingerprint) -> None:
        self._dataset, self._file, self._path = dataset, file, Path(str(file.name))
        self._length, self._dtype = len(tokens), tokens.dtype
        self._vocab_size = dataset.tokenizer.vocab_size
        self._size, self._fingerprint = opened[1], opened

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, part: slice, /) -> Ids:
        start, stop, _ = part.indices(self._length)
        self._file.seek(start * self._dtype.itemsize)
        data = self._file.read(max(stop - start, 0) * self._dtype.itemsize)
        self._require_unchanged()  # after reading: a check before could miss a change in between
        ids = np.frombuffer(data, self._dtype)
        # damaged, with the time of modification as it was; `reduce` takes half the time of ids.max() for one window
        if np.maximum.reduce(ids, initial=0) >= self._vocab_size:
            raise _changed_error(self._dataset)
        return ids

    def _require_unchanged(self) -> None:
        """`UserError` if the open file has other ids now. If its path was replaced, the open file stays valid."""
        status = os.fstat(self._file.fileno())
        current = fingerprints.fingerprint(status)
        if current == self._fingerprint:
            return
        # verify_checksum reads by path, so the path must still be the open file
        if current[1] != self._size or not (self._path.exists() and os.path.samestat(status, self._path.stat())):
            raise _changed_error(self._dataset)
        verify_checksum(self._dataset)
        self._fingerprint = current


@contextmanager
def open_verified(dataset: Dataset) -> Iterator[list[VerifiedTokens]]:
    """The splits of a dataset for training, [train, val]. The files are closed at the end of the `with` block."""
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("rb", buffering=0)) for path in dataset.bins]
        splits = zip(files, (dataset.train, dataset.val), dataset.fingerprints, strict=True)
        yield [VerifiedTokens(dataset, *split) for split in splits]


def _record_of(dataset: Dataset) -> dict[str, object]:
    return tokens_record(dataset.sha256, dataset.tokenizer, dataset.fingerprints)


def _has_checksums(dataset: Dataset, checksums: dict[str, str], report: ProgressCallback | None) -> bool:
    """Whether the .bin files and the tokenizer have these SHA-256."""
    n_bytes, total = 0, dataset.train.nbytes + dataset.val.nbytes
    actual = {"tokenizer": tokenizer_sha256(dataset.tokenizer)}
    for path in dataset.bins:
        digest = hashlib.sha256()
        with path.open("rb", buffering=0) as file:
            while data := file.read(CHUNK_BYTES):
                digest.update(data)
                n_bytes += len(data)
                if report:
                    report("check", n_bytes, total)
        actual[path.name] = digest.hexdigest()
    return actual == checksums


def _is_text(dataset: Dataset, report: ProgressCallback | None) -> bool:
    """Whether the ids, decoded, are the text with the SHA-256 of the dataset."""
    digest, decoder, n_bytes = hashlib.sha256(), dataset.tokenizer.decoder(), 0
    for ids in dataset.read():
        if int(ids.max()) < dataset.tokenizer.vocab_size:  # invalid ids are left out, so the checksum differs
            digest.update(decoder.decode(ids).encode("utf-8", errors="surrogatepass"))
        n_bytes += ids.nbytes
        if report:
            report("check", n_bytes, dataset.train.nbytes + dataset.val.nbytes)
    digest.update(decoder.decode([], final=True).encode())
    return digest.hexdigest() == dataset.sha256


def _changed_error(dataset: Dataset) -> UserError:
    if has_run_tokenizer(dataset.path):
        remedy = "delete that folder, and give the text again (`dataset`)"
    else:
        text = "the original text" if dataset.source == str(dataset.path) else f"`dataset='{dataset.source}'`"
        tokenizer = dataset.tokenizer.to_json()["type"]
        remedy = f"prepare it again with {text} `tokenizer='{tokenizer}'` `out_dir='{dataset.path}'` `overwrite=True`"
    return UserError(
        f"the tokens in {dataset.path} are not those of the text that was prepared there: a file is damaged, or was "
        f"changed; {remedy}"
    )
