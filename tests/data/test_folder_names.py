"""The name of a folder of prepared data, from a text and a tokenizer, and back."""

import re

import pytest

from nanogpt_lite.data import folder_names
from nanogpt_lite.tokenizers.base import Tokenizer
from nanogpt_lite.tokenizers.bpe import BPETokenizer
from nanogpt_lite.tokenizers.byte import ByteTokenizer
from nanogpt_lite.tokenizers.char import CharTokenizer

TOKENIZERS: dict[str, Tokenizer] = {
    "char": CharTokenizer("abc"),
    "byte": ByteTokenizer(),
    "bpe-257": BPETokenizer("", ["a b"]),
}


@pytest.mark.parametrize("text", ["my", "my-byte", "a.b_c"])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_text_is_known_from_each_name_that_its_folder_may_have(text, kind):
    tokenizer = TOKENIZERS[kind]
    by_option = text if kind == "char" else f"{text}-{kind}"
    names = folder_names.possible_names(text, tokenizer)
    with_hash = next(name for name in names if re.fullmatch(rf"{re.escape(text)}-{kind}-[0-9a-f]{{8}}", name))
    assert set(names) == {text, by_option, with_hash}
    assert {folder_names.text_name(name, tokenizer) for name in (by_option, with_hash)} == {text}
    assert folder_names.without_hash(with_hash, tokenizer) == by_option
    assert folder_names.without_hash(by_option, tokenizer) == by_option


def test_other_tokenizers_of_one_type_have_other_names():
    others = [BPETokenizer("bpe-300", *made_of) for made_of in ([["a b"]], [["b a"]], [["a b"], ["unused"]])]
    assert len({folder_names.run_tokenizer_name("my", tokenizer) for tokenizer in others}) == 3
