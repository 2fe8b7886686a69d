"""Text to token ids and back: one token per character, or one per UTF-8 byte.

Neither loops over characters in Python. Reading files and cutting splits is left to `datasets`.
"""

import codecs
from collections.abc import Sequence
from typing import Any

import numpy as np

from nanogpt_lite.tokenizers.base import Ids, TextDecoder, TextEncoder


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
