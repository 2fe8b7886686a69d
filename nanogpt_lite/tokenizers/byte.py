"""The byte tokenizer: one token per byte of the UTF-8 text. It also holds the UTF-8 decoder that `bpe` uses."""

import codecs
from collections.abc import Sequence

import numpy as np

from nanogpt_lite.tokenizers.base import Ids, IncrementalDecoder, IncrementalEncoder, TokenizerJson


class ByteTokenizer:
    """One token per byte of the text in UTF-8. It encodes any text, in any script; the vocabulary size is 256.

    >>> tokenizer = ByteTokenizer()
    >>> tokenizer.encode("né").tolist()
    [110, 195, 169]
    >>> decoder = tokenizer.decoder()  # of ids that arrive in parts
    >>> [decoder.decode([id_]) for id_ in (110, 195, 169)]
    ['n', '', 'é']
    """

    @property
    def vocab_size(self) -> int:
        """Always 256."""
        return 256

    def encode(self, text: str, *, what: str = "text", start: int = 0, final: bool = False) -> Ids:
        """The ids of `text`, shape (bytes,), uint16. Lone surrogates, which UTF-8 cannot encode, become '?'."""
        return np.frombuffer(text.encode("utf-8", errors="replace"), dtype=np.uint8).astype(np.uint16)

    def encoder(self) -> IncrementalEncoder:
        """This tokenizer: each character is encoded alone, so there is no state."""
        return self

    def decode(self, ids: Sequence[int] | Ids) -> str:
        """The text of `ids`, shape (bytes,). Bytes that are not valid UTF-8 become U+FFFD."""
        return self.decoder().decode(ids, final=True)

    def decoder(self) -> IncrementalDecoder:
        """A new decoder for ids that arrive in parts. It holds back unfinished characters."""
        return Utf8Decoder()

    def to_json(self) -> TokenizerJson:
        """`{"type": "byte"}`."""
        return {"type": "byte"}


class Utf8Decoder:
    """Decodes ids of bytes: id i is the byte i or, with a vocabulary, the bytes `vocab[i]`."""

    def __init__(self, vocab: Sequence[bytes] | None = None) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._vocab = vocab

    def decode(self, ids: Sequence[int] | Ids, *, final: bool = False) -> str:
        """The text that is complete after `ids`. `final`: no more ids follow."""
        if self._vocab is None:
            return self._decoder.decode(np.asarray(ids, dtype=np.uint8).tobytes(), final)
        return self._decoder.decode(b"".join(map(self._vocab.__getitem__, np.asarray(ids).tolist())), final)
