"""The character tokenizer: one token per Unicode code point. It uses NumPy tables: no Python loop over characters."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nanogpt_lite.errors import UserError
from nanogpt_lite.tokenizers.base import Ids, IncrementalDecoder, IncrementalEncoder, TokenizerJson, id_dtype

NOT_IN_TABLE = 255  # entry of the ASCII table: an unknown character, or an id of 255 or more


class CharTokenizer:
    """One token per character (Unicode code point). The id of a character is its position in `chars`.

    `UserError` if `chars` is empty, or has a character twice.

    >>> tokenizer = CharTokenizer("abc")
    >>> tokenizer.encode("cab").tolist()
    [2, 0, 1]
    >>> tokenizer.decode([1, 0])
    'ba'
    """

    def __init__(self, chars: str) -> None:
        points = code_points(chars)
        if not len(points):
            raise UserError("a character tokenizer needs at least one character; give a text that is not empty")
        if len(np.unique(points)) < len(points):
            raise UserError("a character tokenizer has the same character twice; prepare the data again")
        self._points = points
        # the id of each code point up to the largest in the vocabulary, or -1
        self._ids = np.full(int(points.max()) + 1, -1, dtype=np.int32)
        self._ids[points] = np.arange(len(points), dtype=np.int32)
        # the same for ASCII text, as a table for bytes.translate: ten times faster
        ascii_ids = [NOT_IN_TABLE if i < 0 else min(i, NOT_IN_TABLE) for i in self._ids[:128].tolist()]
        self._ascii_ids = bytes(ascii_ids + [NOT_IN_TABLE] * (256 - len(ascii_ids)))

    @property
    def vocab_size(self) -> int:
        """The number of characters in the vocabulary."""
        return len(self._points)

    @property
    def chars(self) -> str:
        """All characters, in the order of their ids."""
        return _from_code_points(self._points)

    def encode(self, text: str, *, what: str = "text", start: int = 0, final: bool = False) -> Ids:
        """The ids of `text`, shape (characters,), uint16 (uint32 for more than 65,536 characters).

        `UserError` on a character outside the vocabulary. The message gives the character and its position.
        """
        if text.isascii():
            ascii_ids = text.encode("ascii").translate(self._ascii_ids)
            if NOT_IN_TABLE not in ascii_ids:
                return np.frombuffer(ascii_ids, dtype=np.uint8).astype(id_dtype(self.vocab_size))
        points = code_points(text)
        in_table = points < len(self._ids)
        ids = self._ids[np.where(in_table, points, 0)]
        unknown = ~in_table | (ids < 0)
        if unknown.any():
            position = int(unknown.argmax())
            char = chr(points[position])
            raise UserError(
                f"{what} has {char!r} (U+{ord(char):04X}) at position {start + position}, which is not among the "
                f"{self.vocab_size} characters of this tokenizer; remove it, or train with `tokenizer='byte'`, "
                "which encodes any text"
            )
        return ids.astype(id_dtype(self.vocab_size))

    def encoder(self) -> IncrementalEncoder:
        """This tokenizer: each character is one token, so there is no state."""
        return self

    def decode(self, ids: Sequence[int] | Ids, *, final: bool = False) -> str:
        """The text of `ids`, shape (tokens,)."""
        return _from_code_points(self._points[np.asarray(ids, dtype=np.int64)])

    def decoder(self) -> IncrementalDecoder:
        """This tokenizer: each id is one character, so there is no state."""
        return self

    def to_json(self) -> TokenizerJson:
        """`{"type": "char", "chars": …}`."""
        return {"type": "char", "chars": self.chars}


def code_points(text: str) -> npt.NDArray[np.uint32]:
    """The Unicode code points of `text`, shape (characters,). Lone surrogates are allowed."""
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype="<u4")


def _from_code_points(points: npt.NDArray[np.uint32]) -> str:
    return points.astype("<u4").tobytes().decode("utf-32-le", errors="surrogatepass")
