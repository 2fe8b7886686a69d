"""Byte-pair encoding as GPT-2 has it: a token is a byte, or two tokens together that often follow each other.

`tokenizers` does the work; here is what ids mean, and how long texts are cut so that nothing changes.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from nanogpt_lite.errors import UserError
from nanogpt_lite.tokenizers.base import Ids, TextDecoder, TextEncoder, id_dtype
from nanogpt_lite.tokenizers.byte import Utf8Decoder

END_OF_TEXT = "<|endoftext|>"
GPT2_MERGES_SHA256 = (
    "04e3597d7996f292ca9b8b7285ca4d58a6ae171ac47d73fc7140ceb0c7a6bbc0"  # SHA-256 of GPT-2's, one a line
)
MAX_HELD_CHARS = 2**20  # characters without a place to cut: there a token may be cut in two
MAX_WORD_CHARS = 2**14  # characters: with one of a million the library is busy for hours when it learns
CHUNK_CHARS = 2**13  # characters that the library gets as one text, of many at a time
SPLIT_POINT = re.compile(r"\S(?=[ \n])")  # before a space that follows none: no token of GPT-2's goes across
LAST_SPLIT_POINT = re.compile(rf".*{SPLIT_POINT.pattern}", re.DOTALL)


class BPETokenizer:
    """Ids are the 256 bytes, then what `merges` make ("a b" is one token "ab"), then the `special` texts.

    The bytes stand in GPT-2's order, and in `merges` for each its printable character. `name` is that by which it is
    asked for; without it, gpt2 if the merges are GPT-2's, else bpe-SIZE. `symbols` are all tokens in the order of
    their ids, as GPT-2's files write them.

    `UserError` if `merges` do not follow from each other, or if the package `tokenizers` is not there.
    """

    def __init__(self, name: str, merges: Sequence[str], special: Sequence[str] = ()) -> None:
        self._merges, self._special = list(merges), list(special)
        octets = printable_bytes()
        pairs = [tuple(merge.split(" ")) for merge in merges]
        vocabulary = {char: number for number, char in enumerate(octets)}
        for pair in pairs:
            if len(pair) != 2 or not (pair[0] in vocabulary and pair[1] in vocabulary):
                raise UserError(
                    f"a BPE tokenizer has a merge of what is no token, {pair!r:.60}; prepare the data again, "
                    "or give the tokenizer as it was"
                )
            vocabulary.setdefault("".join(pair), len(vocabulary))
        symbols = [*vocabulary, *special]
        if len(set(symbols)) < len(symbols) or any(_replace_surrogates(text).split() != [text] for text in special):
            raise UserError(
                "a BPE tokenizer has a token twice, or a special one that is empty, no Unicode or has a space; "
                "prepare the data again"
            )
        tokenizers = import_tokenizers()
        self._encoder = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=pairs))
        self._encoder.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._encoder.add_special_tokens(self._special)
        self._bytes = [bytes(octets[char] for char in symbol) for symbol in vocabulary]
        self._bytes += [text.encode() for text in special]
        self._name = name or ("gpt2" if is_gpt2_merges(merges) else f"bpe-{len(symbols)}")
        self.symbols = symbols

    @property
    def end_of_text(self) -> int | None:
        """The id of `END_OF_TEXT`, if it is one of the special texts."""
        return self.symbols.index(END_OF_TEXT) if END_OF_TEXT in self._special else None

    @property
    def vocab_size(self) -> int:
        """How many different tokens there are."""
        return len(self._bytes)

    def encode(self, text: str, what: str = "text", start: int = 0) -> Ids:
        """`text` as ids, shape (tokens,), uint16 (uint32 above 65,536 symbols). Lone surrogates become '?'."""
        parts = self._encoder.encode_batch_fast(list(_split_text(_replace_surrogates(text))))
        ids = itertools.chain.from_iterable(part.ids for part in parts)
        return np.fromiter(ids, dtype=id_dtype(self.vocab_size))

    def encoder(self) -> TextEncoder:
        """An encoder for a text that arrives in pieces: the ids are those of the whole."""
        return _PieceEncoder(self)

    def decode(self, ids: Sequence[int] | Ids) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD."""
        return self.decoder().decode(ids, final=True)

    def decoder(self) -> TextDecoder:
        """A decoder for ids that arrive one after the other: it holds back unfinished characters."""
        return Utf8Decoder(self._bytes)

    def of_the_library(self) -> Any:
        """The same as a `tokenizers.Tokenizer`, to be changed at will."""
        return import_tokenizers().Tokenizer.from_str(self._encoder.to_str())

    def to_json(self) -> dict[str, Any]:
        """`{"type": "bpe-SIZE" or "gpt2", "merges": […], "special": […]}`."""
        return {"type": self._name, "merges": self._merges, "special": self._special}


class _PieceEncoder:
    """Holds back what follows the last place where a text can be cut."""

    def __init__(self, tokenizer: BPETokenizer) -> None:
        self._tokenizer, self._held = tokenizer, ""

    def encode(self, text: str, what: str = "text", start: int = 0, final: bool = False) -> Ids:
        """The ids that are sure after `text`. `final`: nothing follows."""
        text = self._held + text
        end = len(text) if final else _last_split_point(text)
        self._held = text[end:]
        return self._tokenizer.encode(text[:end])


def train_bpe(name: str, pieces: Iterable[str], vocab_size: int) -> BPETokenizer:
    """A tokenizer of at most `vocab_size` symbols, made of what is frequent in a text (fewer if it is short)."""
    tokenizers = import_tokenizers()
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=sorted(printable_bytes()), show_progress=False
    )
    parts = (part for text in _split_at_words(pieces) for part in _split_text(text))
    words = (part[n : n + MAX_WORD_CHARS] for part in parts for n in range(0, len(part), MAX_WORD_CHARS))
    made.train_from_iterator(words, trainer)
    merges = [" ".join(pair) for pair in json.loads(made.to_str())["model"]["merges"]]
    return BPETokenizer(name, merges)


def _split_at_words(pieces: Iterable[str]) -> Iterator[str]:
    """The same text in pieces that no token goes across."""
    held = ""
    for piece in pieces:
        held += piece
        if end := _last_split_point(held):
            yield held[:end]
            held = held[end:]
    yield held


def _replace_surrogates(text: str) -> str:
    """The same text with '?' for lone surrogates."""
    return text.encode("utf-8", "replace").decode()


def _split_text(text: str) -> Iterator[str]:
    """The same text in short parts, cut where nothing changes."""
    begin = 0
    while begin < len(text):
        found = SPLIT_POINT.search(text, begin + CHUNK_CHARS)
        end = found.end() if found else len(text)
        yield text[begin:end]
        begin = end


def _last_split_point(text: str) -> int:
    """The last place where a text can be cut, or 0."""
    if found := LAST_SPLIT_POINT.match(text):
        return found.end()
    return len(text) if len(text) >= MAX_HELD_CHARS else 0


def is_gpt2_merges(merges: Sequence[str]) -> bool:
    """Whether these are the merges of GPT-2's tokenizer."""
    return hashlib.sha256("\n".join(merges).encode("utf-8", "replace")).hexdigest() == GPT2_MERGES_SHA256


def printable_bytes() -> dict[str, int]:
    """GPT-2's character for each byte, in the order of its ids: the printable ones are themselves, and come first."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [octet for octet in range(256) if octet not in printable]
    return {**{chr(octet): octet for octet in printable}, **{chr(256 + n): octet for n, octet in enumerate(others)}}


def import_tokenizers() -> Any:
    """The package `tokenizers`. `UserError` if it is not there."""
    try:
        import tokenizers
    except ImportError:
        raise UserError("this tokenizer needs tokenizers: pip install 'nanogpt-lite[hf]'") from None
    return tokenizers
