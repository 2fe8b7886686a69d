"""The character tokenizer against nanoGPT's dictionary."""

import numpy as np
import pytest
from hard_texts import ANY_TEXT, with_hard_texts
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nanogpt_lite.errors import UserError
from nanogpt_lite.tokenizers.char import CharTokenizer


def nanogpt_encode(text: str, chars: list[str]) -> list[int]:
    """nanoGPT's encode (data/shakespeare_char/prepare.py)."""
    stoi = {ch: i for i, ch in enumerate(chars)}
    return [stoi[c] for c in text]


def many_chars(number: int) -> str:
    """`number` different characters, not sorted, with the ASCII ones around the ids 255 or 65536 (or at the end)."""
    non_ascii = "".join(map(chr, [*range(0x100, 0xD800), *range(0xE000, 0x20000)]))
    ascii_chars = "".join(map(chr, range(128)))
    start = 200 if number < 1000 else 65480
    return (non_ascii[:start] + ascii_chars + non_ascii[start:])[:number]


@settings(deadline=None)
@with_hard_texts
@given(ANY_TEXT.filter(bool))
def test_ids_are_those_of_nanogpt(text):
    chars = sorted(set(text))
    tokenizer = CharTokenizer("".join(chars))
    ids = tokenizer.encode(text)
    assert ids.tolist() == nanogpt_encode(text, chars)
    assert ids.dtype == np.uint16
    assert (tokenizer.vocab_size, tokenizer.chars) == (len(chars), "".join(chars))
    assert tokenizer.decode(ids) == tokenizer.decode(ids.tolist()) == text


@settings(deadline=None)
@given(st.data(), ANY_TEXT.filter(bool))
def test_ids_follow_the_order_of_chars(data, text):
    chars = data.draw(st.permutations(sorted(set(text))))
    assert CharTokenizer("".join(chars)).encode(text).tolist() == nanogpt_encode(text, chars)


@pytest.mark.parametrize("number", [254, 255, 256, 257, 400, 65535, 65536, 65537])
def test_large_vocabularies_use_uint16_up_to_65536_tokens(number):
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
@example("\0b", "\0é")  # id 0 is in use: unknown characters must not become it
@example("ab", "\ud800")
@given(ANY_TEXT.filter(bool), ANY_TEXT)
def test_unknown_character_error_gives_character_and_position(chars, text):
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


def test_unknown_ascii_character_is_not_taken_for_id_255():
    """In the table for ASCII text, 255 means unknown as well as id 255."""
    chars = many_chars(400).replace("x", "")
    known = chars[253:258]
    assert known.isascii()
    assert CharTokenizer(chars).encode(known).tolist() == [253, 254, 255, 256, 257]
    with pytest.raises(UserError, match=r"'x' \(U\+0078\) at position 5"):
        CharTokenizer(chars).encode(known + "x")


def test_lone_surrogates_are_encoded():
    assert CharTokenizer("\ud800a").decode(CharTokenizer("\ud800a").encode("a\ud800")) == "a\ud800"


@settings(deadline=None)
@with_hard_texts
@given(st.text())
def test_incremental_decoder_gives_one_character_per_id(text):
    tokenizer = CharTokenizer("".join(sorted(set(text))) or "a")
    decoder = tokenizer.decoder()
    pieces = [decoder.decode([id_]) for id_ in tokenizer.encode(text).tolist()]
    assert [piece for piece in pieces if piece] == list(text)
    assert decoder.decode([], final=True) == ""


@pytest.mark.parametrize(("chars", "message"), [("", "at least one character"), ("aba", "same character twice")])
def test_vocabulary_must_have_each_character_once(chars, message):
    with pytest.raises(UserError, match=message):
        CharTokenizer(chars)
