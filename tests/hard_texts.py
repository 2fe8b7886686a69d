"""Texts that are hard for a tokenizer, for the tests of several tokenizers."""

from collections.abc import Callable

from hypothesis import example
from hypothesis import strategies as st

ANY_TEXT = st.text(st.characters(exclude_categories=()))  # lone surrogates too
HARD_TEXTS = [
    "👩‍👩‍👧 🏴‍☠️",
    "漢字と仮名",
    "e\u0301 a\u0308\u0323",
    "\0",
    "a\r\nb\rc\n",
    "\ufeffa",
    "\x7f\x80\xff",
    "\U0010ffff",
]


def with_hard_texts(test: Callable[..., None]) -> Callable[..., None]:
    """A hypothesis test that always tries `HARD_TEXTS` too."""
    for text in HARD_TEXTS:
        test = example(text)(test)
    return test
