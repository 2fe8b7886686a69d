"""The baselines of `any_text.py`, which train no network: compressors, and a 5-gram model with Kneser-Ney smoothing.

A compressor's loss is what the val text costs after the train text: the size of both compressed together, less the
size of the train text compressed alone.
"""

import bz2
import lzma
import math
from collections.abc import Callable

import nanogpt_lite as ng
from nanogpt_lite.data.sources import TRAIN_FRACTION
from nanogpt_lite.diagnosis.ngram_baseline import kneser_ney_losses

ORDER = 5
LZMA_PRESET = 9 | lzma.PRESET_EXTREME
MIN_DICTIONARY = 2**26  # bytes; that of the preset


def compress_lzma(content: bytes) -> bytes:
    """LZMA at its highest preset, with a dictionary for the whole content; without a header and a checksum."""
    size = max(MIN_DICTIONARY, len(content))
    filters = [{"id": lzma.FILTER_LZMA2, "preset": LZMA_PRESET, "dict_size": size}]
    return lzma.compress(content, format=lzma.FORMAT_RAW, filters=filters)


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {"lzma": compress_lzma, "bz2": bz2.compress}


def split_text(text: str) -> tuple[str, str]:
    """The train and the val text: the splits of the prepared dataset, before they are tokens."""
    split_at = int(len(text) * TRAIN_FRACTION)
    return text[:split_at], text[split_at:]


def compressed_nats(text: str, compress: Callable[[bytes], bytes]) -> float:
    """What the val text costs after the train text, in nats."""
    train = split_text(text)[0].encode()
    n_bytes = len(compress(text.encode())) - len(compress(train))
    return 8 * n_bytes * math.log(2)


def ngram_loss(data: ng.Dataset) -> float:
    """The loss of the 5-gram model on the val split, in nats per token."""
    losses = kneser_ney_losses(data.train, data.val, vocab_size=data.tokenizer.vocab_size, orders=[ORDER])
    return losses[ORDER]
