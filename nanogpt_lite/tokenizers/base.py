"""Text to token ids and back: one token per character, or one per UTF-8 byte.

Neither loops over characters in Python. Reading files and cutting splits is left to `datasets`.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.integer[Any]]


class TextDecoder(Protocol):
    """Turns ids into text as they come: a character may need several ids."""

    def decode(self, ids: Sequence[int] | Ids, final: bool = False) -> str:
        """The text that is complete after `ids`. `final`: nothing follows."""


class TextEncoder(Protocol):
    """Turns a text into ids as it comes: what stands at the end of a piece may belong to a token with the next."""

    def encode(self, text: str, what: str = "text", start: int = 0, final: bool = False) -> Ids:
        """The ids that are sure after `text`; arguments as of `Tokenizer.encode`. `final`: nothing follows."""


class Tokenizer(Protocol):
    """What the rest of the program needs of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """How many different ids there are."""

    def encode(self, text: str, what: str = "text", start: int = 0) -> Ids:
        """`text` as ids, shape (tokens,). `UserError` if it cannot be encoded.

        The error calls the text `what`, and counts positions from `start`: that of the first character of `text`.
        """

    def encoder(self) -> TextEncoder:
        """An encoder for a text that arrives in pieces."""

    def decode(self, ids: Sequence[int] | Ids) -> str:
        """The text of `ids`."""

    def decoder(self) -> TextDecoder:
        """A decoder for ids that arrive one after the other."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object from which `from_json` makes the same tokenizer."""


def id_dtype(vocab_size: int) -> type[np.uint16] | type[np.uint32]:
    """The format of ids on disk: uint16, as nanoGPT writes them, or uint32 above 65,536 symbols."""
    return np.uint16 if vocab_size <= 2**16 else np.uint32
