"""The tokenizer protocol: what the rest of the program needs of a tokenizer.

See `char`, `byte` and `bpe` for the implementations.
"""

from collections.abc import Sequence
from typing import Any, Protocol, Required, TypedDict

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.integer[Any]]
"""Token ids, shape (tokens,)."""


class TokenizerJson(TypedDict, total=False):
    """The JSON form of a tokenizer, in tokenizer.json and in checkpoints."""

    type: Required[str]  # char, byte, gpt2, or bpe-SIZE
    chars: str  # of char: all characters, in the order of their ids
    merges: list[str]  # of gpt2 and bpe-SIZE: see `bpe`
    special: list[str]  # of gpt2 and bpe-SIZE: the special tokens


class IncrementalDecoder(Protocol):
    """Decodes ids that arrive in parts. It holds back an unfinished character: one character may need several ids."""

    def decode(self, ids: Sequence[int] | Ids, *, final: bool = False) -> str:
        """The text that is complete after `ids`. `final`: no more ids follow."""


class IncrementalEncoder(Protocol):
    """Encodes a text that arrives in chunks. It holds back the end of a chunk if a token may continue in the next."""

    def encode(self, text: str, *, what: str = "text", start: int = 0, final: bool = False) -> Ids:
        """The ids that are certain after `text`; see `Tokenizer.encode` for the arguments. `final`: no more follows."""


class Tokenizer(Protocol):
    """Text to token ids and back."""

    @property
    def vocab_size(self) -> int:
        """The number of tokens in the vocabulary. Ids are in [0, vocab_size)."""

    def encode(self, text: str, *, what: str = "text", start: int = 0) -> Ids:
        """The ids of `text`, shape (tokens,), of type `id_dtype(vocab_size)`. `UserError` if it cannot be encoded.

        The error message calls the text `what`. It counts positions in characters, and `start` is the position of the
        first character of `text`.
        """

    def encoder(self) -> IncrementalEncoder:
        """A new encoder for a text that arrives in chunks. Its ids are those of the whole text."""

    def decode(self, ids: Sequence[int] | Ids) -> str:
        """The text of `ids`, shape (tokens,)."""

    def decoder(self) -> IncrementalDecoder:
        """A new decoder for ids that arrive in parts."""

    def to_json(self) -> TokenizerJson:
        """A JSON object from which `registry.tokenizer_from_json` makes the same tokenizer."""


def id_dtype(vocab_size: int) -> type[np.uint16] | type[np.uint32]:
    """The type of ids on disk: uint16, as nanoGPT writes them, or uint32 for more than 65,536 tokens."""
    return np.uint16 if vocab_size <= 2**16 else np.uint32
