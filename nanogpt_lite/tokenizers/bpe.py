"""Byte-level byte-pair encoding (BPE), as GPT-2 has it: each merge makes one token of two adjacent tokens.

The Hugging Face package `tokenizers` encodes and trains. This module defines the ids, and splits long texts so that
the ids are those of the whole text. See `gpt2` for GPT-2's own merges.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from nanogpt_lite.errors import UserError
from nanogpt_lite.tokenizers.base import Ids, IncrementalDecoder, IncrementalEncoder, TokenizerJson, id_dtype
from nanogpt_lite.tokenizers.byte import Utf8Decoder

if TYPE_CHECKING:
    import tokenizers

END_OF_TEXT = "<|endoftext|>"
GPT2_MERGES_SHA256 = "04e3597d7996f292ca9b8b7285ca4d58a6ae171ac47d73fc7140ceb0c7a6bbc0"  # of the merges, one per line
MAX_PENDING_CHARS = 2**20  # characters without a split point; then the text is split anyway, maybe inside a token
MAX_WORD_CHARS = 2**14  # characters; the library's training takes hours on a word of a million characters
CHUNK_CHARS = 2**13  # characters in each of the texts that the library encodes as one batch
SPLIT_POINT = re.compile(r"\S(?=[ \n])")  # before white space after other text: no token of GPT-2's spans it
LAST_SPLIT_POINT = re.compile(rf".*{SPLIT_POINT.pattern}", re.DOTALL)


class BPETokenizer:
    """Byte-level BPE. Its ids are the 256 bytes in GPT-2's order, then the merged tokens, then the special tokens.

    `name`: the tokenizer's option value, gpt2 or bpe-SIZE; if empty, gpt2 for GPT-2's merges, else bpe-SIZE.
    `merges`: "a b" makes the token "ab"; each byte is written as GPT-2's printable character for it.
    `special`: texts that are one token each, such as <|endoftext|>. A text that holds one gets its id.

    `UserError` if a merge names an unknown token, if a token occurs twice, or if the package `tokenizers` is missing.

    >>> tokenizer = BPETokenizer("", ["a b", "ab c"])
    >>> [tokenizer.tokens[id_] for id_ in tokenizer.encode("abcab")]
    ['abc', 'ab']
    >>> tokenizer.vocab_size
    258
    """

    def __init__(self, name: str, merges: Sequence[str], special: Sequence[str] = ()) -> None:
        self._merges, self._special = list(merges), list(special)
        byte_of = unicode_to_bytes()
        pairs = [tuple(merge.split(" ")) for merge in merges]
        vocab = {char: id_ for id_, char in enumerate(byte_of)}
        for pair in pairs:
            if len(pair) != 2 or not (pair[0] in vocab and pair[1] in vocab):
                raise UserError(
                    f"invalid BPE merge {' '.join(pair)!r:.60}: must be two earlier tokens with a space between them; "
                    "prepare the data again, or restore the tokenizer's file"
                )
            vocab.setdefault("".join(pair), len(vocab))
        tokens = [*vocab, *special]
        if len(set(tokens)) < len(tokens) or any(_replace_surrogates(text).split() != [text] for text in special):
            raise UserError(
                "invalid BPE vocabulary: a token occurs twice, or a special token is empty, has white space or a lone "
                "surrogate; prepare the data again"
            )
        library = import_tokenizers()
        self._encoder: tokenizers.Tokenizer = library.Tokenizer(library.models.BPE(vocab=vocab, merges=pairs))
        self._encoder.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._encoder.add_special_tokens(self._special)
        self._bytes = [bytes(byte_of[char] for char in token) for token in vocab]
        self._bytes += [text.encode() for text in special]
        self._name = name or ("gpt2" if is_gpt2_merges(merges) else f"bpe-{len(tokens)}")
        self.tokens = tokens
        """All tokens in the order of their ids, as GPT-2's files write them."""

    @property
    def end_of_text(self) -> int | None:
        """The id of the special token `END_OF_TEXT`, or None without one."""
        return self.tokens.index(END_OF_TEXT) if END_OF_TEXT in self._special else None

    @property
    def vocab_size(self) -> int:
        """The number of tokens in the vocabulary, special tokens included."""
        return len(self._bytes)

    def encode(self, text: str, *, what: str = "text", start: int = 0) -> Ids:
        """The ids of `text`, shape (tokens,), uint16 (uint32 for more than 65,536). Lone surrogates become '?'."""
        parts = self._encoder.encode_batch_fast(list(_split_text(_replace_surrogates(text))))
        ids = itertools.chain.from_iterable(part.ids for part in parts)
        return np.fromiter(ids, dtype=id_dtype(self.vocab_size))

    def encoder(self) -> IncrementalEncoder:
        """A new encoder for a text that arrives in chunks. Its ids are those of the whole text."""
        return _IncrementalBPEEncoder(self)

    def decode(self, ids: Sequence[int] | Ids) -> str:
        """The text of `ids`, shape (tokens,). Bytes that are not valid UTF-8 become U+FFFD."""
        return self.decoder().decode(ids, final=True)

    def decoder(self) -> IncrementalDecoder:
        """A new decoder for ids that arrive in parts. It holds back unfinished characters."""
        return Utf8Decoder(self._bytes)

    def to_hf_tokenizer(self) -> "tokenizers.Tokenizer":
        """A copy as a tokenizer of the package `tokenizers`; the caller may change it."""
        copy: tokenizers.Tokenizer = import_tokenizers().Tokenizer.from_str(self._encoder.to_str())
        return copy

    def to_json(self) -> TokenizerJson:
        """`{"type": "bpe-SIZE" or "gpt2", "merges": […], "special": […]}`."""
        return {"type": self._name, "merges": self._merges, "special": self._special}


class _IncrementalBPEEncoder:
    """Holds back the text after the last split point."""

    def __init__(self, tokenizer: BPETokenizer) -> None:
        self._tokenizer, self._pending = tokenizer, ""

    def encode(self, text: str, *, what: str = "text", start: int = 0, final: bool = False) -> Ids:
        """The ids that are certain after `text`. `final`: no more text follows."""
        text = self._pending + text
        end = len(text) if final else _last_split_point(text)
        self._pending = text[end:]
        return self._tokenizer.encode(text[:end])


def train_bpe(name: str, chunks: Iterable[str], vocab_size: int) -> BPETokenizer:
    """A tokenizer trained on a text that is given in chunks. It has `vocab_size` tokens, fewer if the text is short."""
    library = import_tokenizers()
    hf_tokenizer = library.Tokenizer(library.models.BPE())
    hf_tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=sorted(unicode_to_bytes()), show_progress=False
    )
    parts = (part for text in _rechunk_at_split_points(chunks) for part in _split_text(text))
    words = (part[n : n + MAX_WORD_CHARS] for part in parts for n in range(0, len(part), MAX_WORD_CHARS))
    hf_tokenizer.train_from_iterator(words, trainer)
    merges = [" ".join(pair) for pair in json.loads(hf_tokenizer.to_str())["model"]["merges"]]
    return BPETokenizer(name, merges)


def _rechunk_at_split_points(chunks: Iterable[str]) -> Iterator[str]:
    """The same text in chunks that end at split points."""
    pending = ""
    for chunk in chunks:
        pending += chunk
        if end := _last_split_point(pending):
            yield pending[:end]
            pending = pending[end:]
    yield pending


def _replace_surrogates(text: str) -> str:
    """The same text with '?' for lone surrogates."""
    return text.encode("utf-8", "replace").decode()


def _split_text(text: str) -> Iterator[str]:
    """The same text in parts of about `CHUNK_CHARS` characters that end at split points."""
    start = 0
    while start < len(text):
        match = SPLIT_POINT.search(text, start + CHUNK_CHARS)
        end = match.end() if match else len(text)
        yield text[start:end]
        start = end


def _last_split_point(text: str) -> int:
    """The position of the last split point, or 0 without one. It is the end of a text of `MAX_PENDING_CHARS`."""
    if match := LAST_SPLIT_POINT.match(text):
        return match.end()
    return len(text) if len(text) >= MAX_PENDING_CHARS else 0


def is_gpt2_merges(merges: Sequence[str]) -> bool:
    """Whether these are the merges of GPT-2's tokenizer."""
    return hashlib.sha256("\n".join(merges).encode("utf-8", "replace")).hexdigest() == GPT2_MERGES_SHA256


def unicode_to_bytes() -> dict[str, int]:
    """The byte of each of GPT-2's 256 characters, in the order of their ids: the inverse of its `bytes_to_unicode`.

    Printable bytes come first and are written as themselves, the others as the characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    unprintable = [byte for byte in range(256) if byte not in printable]
    return {**{chr(byte): byte for byte in printable}, **{chr(256 + n): byte for n, byte in enumerate(unprintable)}}


def import_tokenizers() -> ModuleType:
    """The package `tokenizers`. `UserError` if it is not installed."""
    try:
        import tokenizers
    except ImportError:
        raise UserError(
            "this tokenizer needs the package tokenizers; install it: pip install 'nanogpt-lite[hf]'"
        ) from None
    return tokenizers
