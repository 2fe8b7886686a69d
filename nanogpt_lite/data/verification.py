"""Checks that the token ids on disk are still those of the prepared text: before a run, and while a run reads them."""

import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from nanogpt_lite.data.dataset import Dataset, FileFingerprint, fingerprint
from nanogpt_lite.data.download import ProgressCallback
from nanogpt_lite.errors import UserError
from nanogpt_lite.tokenizers.base import Ids


def verify_checksum(dataset: Dataset, report: ProgressCallback | None = None) -> None:
    """`UserError` unless all ids of a dataset, decoded, are the text that was prepared (by its SHA-256)."""
    digest, decoder, n_bytes = hashlib.sha256(), dataset.tokenizer.decoder(), 0
    for ids in dataset.read():
        if int(ids.max()) < dataset.tokenizer.vocab_size:  # invalid ids are left out, so the checksum differs
            digest.update(decoder.decode(ids).encode("utf-8", errors="surrogatepass"))
        n_bytes += ids.nbytes
        if report:
            report("check", n_bytes, dataset.train.nbytes + dataset.val.nbytes)
    digest.update(decoder.decode([], final=True).encode())
    if digest.hexdigest() != dataset.sha256:
        raise _changed_error(dataset)


class VerifiedTokens:
    """One split of a dataset for training, read by slices. Each slice is checked: `UserError` if the ids have changed.

    It reads the file instead of a memory map: if the file of a map is truncated, the system kills the process (SIGBUS).
    """

    def __init__(self, dataset: Dataset, file: io.FileIO, tokens: Ids, opened: FileFingerprint) -> None:
        self._dataset, self._file, self._path = dataset, file, Path(str(file.name))
        self._length, self._dtype = len(tokens), tokens.dtype
        self._size, self._fingerprint = opened[1], opened

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, part: slice, /) -> Ids:
        start, stop, _ = part.indices(self._length)
        self._file.seek(start * self._dtype.itemsize)
        data = self._file.read(max(stop - start, 0) * self._dtype.itemsize)
        self._require_unchanged()  # after reading: a check before could miss a change in between
        return np.frombuffer(data, self._dtype)

    def _require_unchanged(self) -> None:
        """`UserError` if the open file has other ids now. If its path was replaced, the open file stays valid."""
        status = os.fstat(self._file.fileno())
        current = fingerprint(status)
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


def _changed_error(dataset: Dataset) -> UserError:
    text = "the original text" if dataset.source == str(dataset.path) else f"`dataset='{dataset.source}'`"
    return UserError(
        f"the tokens in {dataset.path} are not those of the text that was prepared there: a file is damaged, or was "
        f"changed; prepare it again with {text} `out_dir='{dataset.path}'` `overwrite=True`"
    )
