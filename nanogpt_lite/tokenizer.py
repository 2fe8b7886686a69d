"""Text to token ids and back: one token per character, or one per UTF-8 byte.

Neither loops over characters in Python. Reading files and cutting splits is left to `datasets`.
"""

import codecs
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from nanogpt_lite.errors import UserError

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


class CharTokenizer:
    """One token per character (Unicode code point); `chars` are all of them, in the order of their ids."""

    def __init__(self, chars: str) -> None:
        points = code_points(chars)
        if not len(points):
            raise UserError("a character tokenizer needs at least one character; give a text that is not empty")
        if len(np.unique(points)) < len(points):
            raise UserError("a character tokenizer has the same character twice; prepare the data again")
        self._points = points
        # id of every code point up to the largest one here, -1 where there is none
        self._ids = np.full(int(points.max()) + 1, -1, dtype=np.int32)
        self._ids[points] = np.arange(len(points), dtype=np.int32)
        # the same for ASCII text, as bytes.translate wants it: ten times faster. 255: look it up the other way
        self._ascii_ids = bytes(255 if i < 0 else min(i, 255) for i in [*self._ids[:128].tolist(), *[-1] * 256][:256])

    @property
    def vocab_size(self) -> int:
        """How many different characters there are."""
        return len(self._points)

    @property
    def chars(self) -> str:
        """All characters, in the order of their ids."""
        return _text(self._points)

    def encode(self, text: str, what: str = "text", start: int = 0, final: bool = False) -> Ids:
        """`text` as ids, shape (characters,), uint16 (uint32 above 65,536 characters).

        `UserError` on a character outside the vocabulary: it names the character and its position.
        """
        if text.isascii():
            octets = text.encode("ascii").translate(self._ascii_ids)
            if 255 not in octets:
                return np.frombuffer(octets, dtype=np.uint8).astype(id_dtype(self.vocab_size))
        points = code_points(text)
        inside = points < len(self._ids)
        ids = self._ids[np.where(inside, points, 0)]
        unknown = ~inside | (ids < 0)
        if unknown.any():
            position = int(unknown.argmax())
            char = chr(points[position])
            raise UserError(
                f"{what} has {char!r} (U+{ord(char):04X}) at position {start + position}, which is not among the "
                f"{self.vocab_size} characters of this tokenizer; leave it out, or train with tokenizer=byte, "
                "which takes any text"
            )
        return ids.astype(id_dtype(self.vocab_size))

    def encoder(self) -> TextEncoder:
        """An encoder for a text that arrives in pieces."""
        return self

    def decode(self, ids: Sequence[int] | Ids, final: bool = False) -> str:
        """The text of `ids`. A character is one id, so this serves ids that arrive one by one too."""
        return _text(self._points[np.asarray(ids, dtype=np.int64)])

    def decoder(self) -> TextDecoder:
        """A decoder for ids that arrive one after the other."""
        return self

    def to_json(self) -> dict[str, Any]:
        """`{"type": "char", "chars": …}`."""
        return {"type": "char", "chars": self.chars}


class ByteTokenizer:
    """One token per byte of the text's UTF-8 form: takes any text, in any script."""

    @property
    def vocab_size(self) -> int:
        """Always 256."""
        return 256

    def encode(self, text: str, what: str = "text", start: int = 0, final: bool = False) -> Ids:
        """`text` as ids, shape (bytes,), uint16. Lone surrogates, which UTF-8 has no bytes for, become '?'."""
        return np.frombuffer(text.encode("utf-8", errors="replace"), dtype=np.uint8).astype(np.uint16)

    def encoder(self) -> TextEncoder:
        """An encoder for a text that arrives in pieces."""
        return self

    def decode(self, ids: Sequence[int] | Ids) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD."""
        return self.decoder().decode(ids, final=True)

    def decoder(self) -> TextDecoder:
        """A decoder for ids that arrive one after the other: it holds back unfinished characters."""
        return Utf8Decoder()

    def to_json(self) -> dict[str, Any]:
        """`{"type": "byte"}`."""
        return {"type": "byte"}


class Utf8Decoder:
    """Turns ids into text that stand for bytes: each for one, or for those in `table`."""

    def __init__(self, table: Sequence[bytes] | None = None) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._table = table

    def decode(self, ids: Sequence[int] | Ids, final: bool = False) -> str:
        """The text that is complete after `ids`. `final`: nothing follows."""
        if self._table is None:
            return self._decoder.decode(np.asarray(ids, dtype=np.uint8).tobytes(), final)
        return self._decoder.decode(b"".join(map(self._table.__getitem__, np.asarray(ids).tolist())), final)


def id_dtype(vocab_size: int) -> type[np.uint16] | type[np.uint32]:
    """The format of ids on disk: uint16, as nanoGPT writes them, or uint32 above 65,536 symbols."""
    return np.uint16 if vocab_size <= 2**16 else np.uint32


def code_points(text: str) -> npt.NDArray[np.uint32]:
    """The Unicode code points of `text`, shape (characters,)."""
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype="<u4")


def _text(points: npt.NDArray[np.uint32]) -> str:
    return points.astype("<u4").tobytes().decode("utf-32-le", errors="surrogatepass")
