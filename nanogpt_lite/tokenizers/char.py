"""Text to token ids and back: one token per character, or one per UTF-8 byte.

Neither loops over characters in Python. Reading files and cutting splits is left to `datasets`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nanogpt_lite.errors import UserError
from nanogpt_lite.tokenizers.base import Ids, TextDecoder, TextEncoder, id_dtype


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
        return _from_code_points(self._points)

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
        return _from_code_points(self._points[np.asarray(ids, dtype=np.int64)])

    def decoder(self) -> TextDecoder:
        """A decoder for ids that arrive one after the other."""
        return self

    def to_json(self) -> dict[str, Any]:
        """`{"type": "char", "chars": …}`."""
        return {"type": "char", "chars": self.chars}


def code_points(text: str) -> npt.NDArray[np.uint32]:
    """The Unicode code points of `text`, shape (characters,)."""
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype="<u4")


def _from_code_points(points: npt.NDArray[np.uint32]) -> str:
    return points.astype("<u4").tobytes().decode("utf-32-le", errors="surrogatepass")
