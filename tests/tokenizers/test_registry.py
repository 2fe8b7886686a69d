"""Tokenizers from their JSON form. See test_bpe for the form of BPE."""

import json

import pytest
from hard_texts import ANY_TEXT
from hypothesis import given, settings

from nanogpt_lite.errors import UserError
from nanogpt_lite.tokenizers.byte import ByteTokenizer
from nanogpt_lite.tokenizers.char import CharTokenizer
from nanogpt_lite.tokenizers.registry import tokenizer_from_json


@settings(deadline=None)
@given(ANY_TEXT.filter(bool))
def test_json_form_makes_the_same_tokenizer(text):
    char = CharTokenizer("".join(sorted(set(text))))
    for tokenizer in (char, ByteTokenizer()):
        restored = tokenizer_from_json(json.loads(json.dumps(tokenizer.to_json())))
        assert type(restored) is type(tokenizer)
        assert restored.vocab_size == tokenizer.vocab_size
        assert restored.encode(text).tolist() == tokenizer.encode(text).tolist()


@pytest.mark.parametrize(
    "form",
    [None, [], {}, "byte", 5, {"type": "bpe"}, {"type": ["char"]}, {"chars": "ab"}, {"type": "char"}]
    + [{"type": "char", "chars": chars} for chars in ("", "aa", None, 5, ["a", "b"], {"a": 0})],
)
def test_invalid_json_form_is_refused(form):
    with pytest.raises(UserError, match="prepare the data again"):
        tokenizer_from_json(form)
