"""Whether the tokens on disk are still the text that was prepared: before a run, and while it reads them."""

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
    """`UserError` unless the tokens of a prepared text are still that text: all of them are read."""
    digest, decoder, done = hashlib.sha256(), dataset.tokenizer.decoder(), 0
    for ids in dataset.read():
        if int(ids.max()) < dataset.tokenizer.vocab_size:  # else it is missing below
            digest.update(decoder.decode(ids).encode("utf-8", errors="surrogatepass"))
        done += ids.nbytes
        if report:
            report("check", done, dataset.train.nbytes + dataset.val.nbytes)
    digest.update(decoder.decode([], final=True).encode())
    if digest.hexdigest() != dataset.sha256:
        raise _changed_error(dataset)


class VerifiedTokens:
    """A split of a prepared text as a run reads it, by slices: what it gives are the tokens that were prepared.

    It reads the file: who reads a memory map of one that was cut off is killed by the system.
    """

    def __init__(self, dataset: Dataset, file: io.FileIO, tokens: Ids, opened: FileFingerprint) -> None:
        self._dataset, self._file, self._path = dataset, file, Path(str(file.name))
        self._length, self._dtype = len(tokens), tokens.dtype
        self._size, self._stamp = opened[1], opened

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, part: slice, /) -> Ids:
        start, stop, _ = part.indices(self._length)
        self._file.seek(start * self._dtype.itemsize)
        found = self._file.read(max(stop - start, 0) * self._dtype.itemsize)
        self._require_unchanged()  # after it was read: before, it may change in between
        return np.frombuffer(found, self._dtype)

    def _require_unchanged(self) -> None:
        """`UserError` if the file holds other tokens now. Of one that was replaced, a run goes on to read the old."""
        found = os.fstat(self._file.fileno())
        now = fingerprint(found)
        if now == self._stamp:
            return
        # what is looked at next is the file of that name: it has to be this one
        if now[1] != self._size or not (self._path.exists() and os.path.samestat(found, self._path.stat())):
            raise _changed_error(self._dataset)
        verify_checksum(self._dataset)
        self._stamp = now


@contextmanager
def open_verified(dataset: Dataset) -> Iterator[list[VerifiedTokens]]:
    """The two splits of a prepared text, train and val, for a run to read."""
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("rb", buffering=0)) for path in dataset.bins]
        splits = zip(files, (dataset.train, dataset.val), dataset.stamps, strict=True)
        yield [VerifiedTokens(dataset, *split) for split in splits]


def _changed_error(dataset: Dataset) -> UserError:
    text = "…" if dataset.source == str(dataset.path) else dataset.source
    return UserError(
        f"the tokens in {dataset.path} are not those of the text that was prepared there: a file is damaged, or was "
        f"changed; prepare the text again: nanogpt-lite prepare --dataset {text} --out_dir {dataset.path} --overwrite"
    )
