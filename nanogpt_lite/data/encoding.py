"""Text to token ids: read once to see what it is, then again to write its two splits, in bounded memory."""

import hashlib
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nanogpt_lite.data.download import ProgressCallback
from nanogpt_lite.data.sources import TextSource
from nanogpt_lite.errors import ExternalError, UserError
from nanogpt_lite.tokenizers.base import Tokenizer
from nanogpt_lite.tokenizers.char import CharTokenizer, code_points

TRAIN_FRACTION = 0.9


@dataclass(frozen=True)
class TextStats:
    """What one reading of a text tells."""

    sha256: str
    characters: int
    octets: int
    alphabet: str


def collect_stats(source: TextSource, report: ProgressCallback | None) -> TextStats:
    """Read a text once: hash, length, and every character in it, in the order of the code points."""
    digest, characters, octets = hashlib.sha256(), 0, 0
    seen = np.zeros(0x110000, dtype=bool)
    for piece in source.pieces():
        data = piece.encode("utf-8")
        digest.update(data)
        characters += len(piece)
        octets += len(data)
        if len(data) == len(piece):  # ASCII: only the characters not yet seen are looked at
            known = bytes(np.flatnonzero(seen[:128]).tolist())
            seen[list(set(data.translate(None, delete=known)))] = True
        else:
            seen[code_points(piece)] = True
        if report:
            report("read", octets, None)
    if characters - int(characters * TRAIN_FRACTION) < 2:
        raise UserError(
            f"{source.label} has {characters} characters; at least 11 are needed, so that there is something to "
            "train on and two characters to validate with: give a longer text"
        )
    alphabet = "".join(map(chr, np.flatnonzero(seen).tolist()))
    return TextStats(digest.hexdigest(), characters, octets, alphabet)


def encode_splits(
    source: TextSource,
    text: TextStats,
    tokenizer: Tokenizer,
    dtype: Any,
    train: Path,
    val: Path,
    report: ProgressCallback | None,
) -> tuple[int, int]:
    """Write both splits; the number of tokens in each. `ExternalError` if the text is no longer what was surveyed."""
    digest, octets, position = hashlib.sha256(), 0, 0
    border = int(text.characters * TRAIN_FRACTION)
    tokens = [0, 0]
    changed = ExternalError(f"{source.label} changed while it was read; wait until nobody writes to it, and try again")
    encoders = tokenizer.encoder(), tokenizer.encoder()
    with train.open("wb") as train_file, val.open("wb") as val_file:
        for piece, final in itertools.chain(((piece, False) for piece in source.pieces()), [("", True)]):
            data = piece.encode("utf-8")
            digest.update(data)
            octets += len(data)
            cut = min(max(border - position, 0), len(piece))
            for split, (part, file) in enumerate([(piece[:cut], train_file), (piece[cut:], val_file)]):
                try:
                    ids = encoders[split].encode(part, what=source.label, start=position, final=final)
                except UserError:
                    if tokenizer.to_json() == CharTokenizer(text.alphabet).to_json():  # it had all its characters
                        raise changed from None
                    raise
                position += len(part)
                tokens[split] += len(ids)
                file.write(ids.astype(dtype, copy=False).data)
            if report:
                report("encode", octets, text.octets)
    if digest.hexdigest() != text.sha256:
        raise changed
    return tokens[0], tokens[1]
