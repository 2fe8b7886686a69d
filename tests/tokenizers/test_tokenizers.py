"""Text to ids and back, against nanoGPT's dictionary and Python's own codecs."""

import codecs
import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nanogpt_lite.errors import UserError
from nanogpt_lite.tokenizers.byte import ByteTokenizer
from nanogpt_lite.tokenizers.char import CharTokenizer
from nanogpt_lite.tokenizers.registry import tokenizer_from_json

ANY_TEXT = st.text(st.characters(exclude_categories=()))  # lone surrogates too
SPECIAL = [
    "👩‍👩‍👧 🏴‍☠️",
    "漢字と仮名",
    "e\u0301 a\u0308\u0323",
    "\0",
    "a\r\nb\rc\n",
    "\ufeffa",
    "\x7f\x80\xff",
    "\U0010ffff",
]


def examples(test):
    for text in SPECIAL:
        test = example(text)(test)
    return test


def naive(text: str, chars: list[str]) -> list[int]:
    """nanoGPT's encode (data/shakespeare_char/prepare.py)."""
    stoi = {ch: i for i, ch in enumerate(chars)}
    return [stoi[c] for c in text]


def many_chars(number: int) -> str:
    """So many characters, in no order, with the ASCII ones around the ids 255 and 65536 (or at the end)."""
    others = "".join(map(chr, [*range(0x100, 0xD800), *range(0xE000, 0x20000)]))
    ascii_chars = "".join(map(chr, range(128)))
    start = 200 if number < 1000 else 65480
    return (others[:start] + ascii_chars + others[start:])[:number]


@settings(deadline=None)
@examples
@given(ANY_TEXT.filter(bool))
def test_char_ids_are_nanogpt_s(text):
    chars = sorted(set(text))
    tokenizer = CharTokenizer("".join(chars))
    ids = tokenizer.encode(text)
    assert ids.tolist() == naive(text, chars)
    assert ids.dtype == np.uint16
    assert (tokenizer.vocab_size, tokenizer.chars) == (len(chars), "".join(chars))
    assert tokenizer.decode(ids) == tokenizer.decode(ids.tolist()) == text


@settings(deadline=None)
@given(st.data(), ANY_TEXT.filter(bool))
def test_char_ids_follow_the_given_order(data, text):
    chars = data.draw(st.permutations(sorted(set(text))))
    assert CharTokenizer("".join(chars)).encode(text).tolist() == naive(text, chars)


@pytest.mark.parametrize("number", [254, 255, 256, 257, 400, 65535, 65536, 65537])
def test_large_vocabularies(number):
    chars = many_chars(number)
    tokenizer = CharTokenizer(chars)
    expected_dtype = np.uint16 if number <= 65536 else np.uint32
    stoi = {char: number for number, char in enumerate(chars)}
    for text in (chars, chars[::-1], *[c * 3 for c in chars if c.isascii()], chars[254:258], ""):
        ids = tokenizer.encode(text)
        assert ids.dtype == expected_dtype
        assert ids.tolist() == [stoi[char] for char in text]
    assert tokenizer.decode(np.arange(number)) == chars


@settings(deadline=None)
@example("ab", "bca")  # all ASCII
@example("ab", "bécè")  # one beyond the largest known code point
@example("éz", "zàé")  # one below it
@example("\0b", "\0é")  # where the table's first entry is taken
@example("ab", "\ud800")
@given(ANY_TEXT.filter(bool), ANY_TEXT)
def test_an_unknown_character_is_named(chars, text):
    tokenizer = CharTokenizer("".join(sorted(set(chars))))
    position = next((i for i, c in enumerate(text) if c not in chars), None)
    if position is None:
        assert tokenizer.decode(tokenizer.encode(text)) == text
        return
    char = text[position]
    for start in (0, 1000):
        with pytest.raises(UserError) as caught:
            tokenizer.encode(text, what="prompt", start=start)
        message = str(caught.value)
        assert message.startswith(f"prompt has {char!r} (U+{ord(char):04X}) at position {start + position}, ")
        assert f"{len(set(chars))} characters" in message
        assert "`tokenizer='byte'`" in message


def test_an_unknown_character_next_to_the_255th():
    """Where the table for ASCII text has to tell "unknown" from id 255."""
    chars = many_chars(400).replace("x", "")
    known = chars[253:258]
    assert known.isascii()
    assert CharTokenizer(chars).encode(known).tolist() == [253, 254, 255, 256, 257]
    with pytest.raises(UserError, match=r"'x' \(U\+0078\) at position 5"):
        CharTokenizer(chars).encode(known + "x")


@settings(deadline=None)
@given(ANY_TEXT.filter(bool))
def test_json_form_makes_the_same_tokenizer(text):
    char = CharTokenizer("".join(sorted(set(text))))
    for tokenizer in (char, ByteTokenizer()):
        again = tokenizer_from_json(json.loads(json.dumps(tokenizer.to_json())))
        assert type(again) is type(tokenizer)
        assert again.vocab_size == tokenizer.vocab_size
        assert again.encode(text).tolist() == tokenizer.encode(text).tolist()


@pytest.mark.parametrize(
    "form",
    [None, [], {}, "byte", 5, {"type": "bpe"}, {"type": ["char"]}, {"chars": "ab"}, {"type": "char"}]
    + [{"type": "char", "chars": chars} for chars in ("", "aa", None, 5, ["a", "b"], {"a": 0})],
)
def test_json_of_something_else_is_refused(form):
    with pytest.raises(UserError, match="prepare the data again"):
        tokenizer_from_json(form)


@settings(deadline=None)
@examples
@given(st.text())
def test_byte_ids_are_python_s_utf8(text):
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert ids.tolist() == list(text.encode("utf-8"))
    assert ids.dtype == np.uint16
    assert tokenizer.vocab_size == 256
    assert tokenizer.decode(ids) == tokenizer.decode(ids.tolist()) == text


def test_lone_surrogates():
    assert bytes(ByteTokenizer().encode("a\ud800b\udfff").tolist()) == b"a?b?"
    assert CharTokenizer("\ud800a").decode(CharTokenizer("\ud800a").encode("a\ud800")) == "a\ud800"


@settings(deadline=None)
@examples
@given(st.text())
def test_text_comes_out_whole_however_the_ids_arrive(text):
    """One by one, each as soon as it is complete: like Python's own incremental decoder, and never half."""
    for tokenizer in (ByteTokenizer(), CharTokenizer("".join(sorted(set(text))) or "a")):
        decoder = tokenizer.decoder()
        pieces = [decoder.decode([token]) for token in tokenizer.encode(text).tolist()]
        assert [piece for piece in pieces if piece] == list(text)
        assert decoder.decode([], final=True) == ""


@settings(deadline=None)
@example([b"\xff"])
@example([b"a\xe2", b"\x82"])  # the end of a character never comes
@example([b"\xed\xa0\x80"])  # a surrogate in UTF-8's clothes
@example([b"\xc0\x80"])
@given(st.lists(st.binary(max_size=6)))
def test_invalid_bytes_become_replacement_characters(pieces):
    octets = b"".join(pieces)
    assert ByteTokenizer().decode(list(octets)) == octets.decode("utf-8", errors="replace")
    decoder, reference = ByteTokenizer().decoder(), codecs.getincrementaldecoder("utf-8")("replace")
    for piece in pieces:
        assert decoder.decode(list(piece)) == reference.decode(piece)
    assert decoder.decode([], final=True) == reference.decode(b"", final=True)


@pytest.mark.parametrize(("chars", "message"), [("", "at least one character"), ("aba", "same character twice")])
def test_a_vocabulary_has_each_character_once(chars, message):
    with pytest.raises(UserError, match=message):
        CharTokenizer(chars)


def test_decoders_do_not_share_state():
    one, other = ByteTokenizer().decoder(), ByteTokenizer().decoder()
    assert one.decode([0xC3]) == ""
    assert other.decode([0x61]) == "a"
    assert one.decode([0xA9]) == "é"
