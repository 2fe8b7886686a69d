"""Text to token ids, in bounded memory: a first pass collects statistics, a second one writes the two splits.

See `sources` for reading the text, and `dataset` for the folder that the splits belong to.
"""

import hashlib
import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import numpy.typing as npt

from nanogpt_lite.data.download import ProgressCallback
from nanogpt_lite.data.sources import TRAIN_FRACTION, TextSource
from nanogpt_lite.errors import ExternalError, UserError
from nanogpt_lite.tokenizers.base import IncrementalEncoder, Tokenizer
from nanogpt_lite.tokenizers.char import CharTokenizer, code_points

if TYPE_CHECKING:
    from hashlib import _Hash


@dataclass(frozen=True)
class TextStats:
    """The result of reading a text once."""

    sha256: str  # of the text in UTF-8
    n_chars: int
    n_bytes: int  # in UTF-8
    charset: str  # every character that occurs, in the order of the code points


@dataclass(frozen=True)
class EncodedSplit:
    """What was written for one split."""

    n_tokens: int
    sha256: str  # of the file
    n_bytes: int  # of that text in UTF-8


def collect_stats(source: TextSource, report: ProgressCallback | None) -> TextStats:
    """Read a text once. `UserError` if it is too short to have a train and a validation split."""
    digest, n_chars, n_bytes = hashlib.sha256(), 0, 0
    occurs = np.zeros(0x110000, dtype=bool)  # by code point
    for chunk in source.read_chunks():
        data = chunk.encode("utf-8")
        digest.update(data)
        n_chars += len(chunk)
        n_bytes += len(data)
        if len(data) == len(chunk):  # ASCII: it is faster to look only at characters that are new
            seen = bytes(np.flatnonzero(occurs[:128]).tolist())
            occurs[list(set(data.translate(None, delete=seen)))] = True
        else:
            occurs[code_points(chunk)] = True
        if report:
            report("read", n_bytes, None)
    if n_chars - int(n_chars * TRAIN_FRACTION) < 2:
        raise UserError(
            f"{source.label} has {n_chars} characters; at least 11 are needed, so that the validation split has two: "
            "give a longer text"
        )
    charset = "".join(map(chr, np.flatnonzero(occurs).tolist()))
    return TextStats(digest.hexdigest(), n_chars, n_bytes, charset)


def encode_splits(
    source: TextSource,
    stats: TextStats,
    tokenizer: Tokenizer,
    *,
    dtype: npt.DTypeLike,
    train_path: Path,
    val_path: Path,
    report: ProgressCallback | None,
) -> tuple[EncodedSplit, EncodedSplit]:
    """Write the ids of both splits, (train, val), as raw arrays of `dtype`.

    `ExternalError` if the text has changed since `stats` were collected.
    """
    digest, n_bytes, n_val_bytes, position = hashlib.sha256(), 0, 0, 0
    split_at = int(stats.n_chars * TRAIN_FRACTION)
    with train_path.open("wb") as train_file, val_path.open("wb") as val_file:
        train, val = (_SplitWriter(file, tokenizer.encoder(), dtype) for file in (train_file, val_file))
        for chunk, final in itertools.chain(((chunk, False) for chunk in source.read_chunks()), [("", True)]):
            data = chunk.encode("utf-8")
            digest.update(data)
            n_bytes += len(data)
            cut = min(max(split_at - position, 0), len(chunk))
            n_val_bytes += len(chunk[cut:].encode("utf-8")) if cut else len(data)
            try:
                train.write(chunk[:cut], label=source.label, start=position, final=final)
                val.write(chunk[cut:], label=source.label, start=position + cut, final=final)
            except UserError:
                if tokenizer.to_json() == CharTokenizer(stats.charset).to_json():  # it had every character
                    raise _text_changed_error(source) from None
                raise
            position += len(chunk)
            if report:
                report("encode", n_bytes, stats.n_bytes)
    if digest.hexdigest() != stats.sha256:
        raise _text_changed_error(source)
    return train.result(n_bytes - n_val_bytes), val.result(n_val_bytes)


@dataclass
class _SplitWriter:
    """Encodes one split chunk by chunk and appends the ids to its file."""

    file: BinaryIO
    encoder: IncrementalEncoder
    dtype: npt.DTypeLike
    n_tokens: int = 0
    digest: "_Hash" = field(default_factory=hashlib.sha256)

    def write(self, text: str, *, label: str, start: int, final: bool) -> None:
        ids = self.encoder.encode(text, what=label, start=start, final=final)
        self.n_tokens += len(ids)
        data = ids.astype(self.dtype, copy=False).data
        self.digest.update(data)
        self.file.write(data)

    def result(self, n_bytes: int) -> EncodedSplit:
        return EncodedSplit(self.n_tokens, self.digest.hexdigest(), n_bytes)


def _text_changed_error(source: TextSource) -> ExternalError:
    return ExternalError(
        f"{source.label} changed while it was read; wait until no other program writes to it, and try again"
    )
