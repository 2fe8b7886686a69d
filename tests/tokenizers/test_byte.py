"""The byte tokenizer against Python's own UTF-8 codec."""

import codecs

import numpy as np
from hard_texts import with_hard_texts
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nanogpt_lite.tokenizers.byte import ByteTokenizer


@settings(deadline=None)
@with_hard_texts
@given(st.text())
def test_ids_are_the_bytes_of_utf8(text):
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert ids.tolist() == list(text.encode("utf-8"))
    assert ids.dtype == np.uint16
    assert tokenizer.vocab_size == 256
    assert tokenizer.decode(ids) == tokenizer.decode(ids.tolist()) == text


def test_lone_surrogates_become_question_marks():
    assert bytes(ByteTokenizer().encode("a\ud800b\udfff").tolist()) == b"a?b?"


@settings(deadline=None)
@with_hard_texts
@given(st.text())
def test_incremental_decoder_gives_each_character_when_it_is_complete(text):
    tokenizer = ByteTokenizer()
    decoder = tokenizer.decoder()
    pieces = [decoder.decode([id_]) for id_ in tokenizer.encode(text).tolist()]
    assert [piece for piece in pieces if piece] == list(text)
    assert decoder.decode([], final=True) == ""


@settings(deadline=None)
@example([b"\xff"])
@example([b"a\xe2", b"\x82"])  # an incomplete character at the end
@example([b"\xed\xa0\x80"])  # a surrogate
@example([b"\xc0\x80"])
@given(st.lists(st.binary(max_size=6)))
def test_invalid_bytes_become_replacement_characters(pieces):
    data = b"".join(pieces)
    assert ByteTokenizer().decode(list(data)) == data.decode("utf-8", errors="replace")
    decoder, reference = ByteTokenizer().decoder(), codecs.getincrementaldecoder("utf-8")("replace")
    for piece in pieces:
        assert decoder.decode(list(piece)) == reference.decode(piece)
    assert decoder.decode([], final=True) == reference.decode(b"", final=True)


def test_decoders_do_not_share_state():
    first, second = ByteTokenizer().decoder(), ByteTokenizer().decoder()
    assert first.decode([0xC3]) == ""
    assert second.decode([0x61]) == "a"
    assert first.decode([0xA9]) == "é"
