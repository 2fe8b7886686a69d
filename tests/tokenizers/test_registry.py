"""Every tokenizer by its name and from its JSON form, and what the rest of the program needs of each."""

import hashlib
import json

import numpy as np
import pytest
from documentation import ROOT
from hard_texts import ANY_TEXT, HARD_TEXTS
from hypothesis import given, settings

from nanogpt_lite.config.options import TOKENIZERS, DataConfig, is_tokenizer_name
from nanogpt_lite.errors import UserError
from nanogpt_lite.tokenizers import bpe
from nanogpt_lite.tokenizers.base import Tokenizer, id_dtype
from nanogpt_lite.tokenizers.bpe import BPETokenizer
from nanogpt_lite.tokenizers.char import CharTokenizer
from nanogpt_lite.tokenizers.registry import make_tokenizer, option_of, tokenizer_from_json

TEXT = "".join(HARD_TEXTS) + "green bottles hanging on the wall\n" * 9
NAMES = [*(name for name in TOKENIZERS if name != "gpt2"), "bpe-300"]  # gpt2 needs the Hugging Face hub: see test_bpe


@pytest.fixture(params=NAMES)
def named(request) -> tuple[str, Tokenizer]:
    """A name, and the tokenizer of that name for `TEXT`."""
    name = request.param
    return name, make_tokenizer(name, charset="".join(sorted(set(TEXT))), read_chunks=lambda: [TEXT[:9], TEXT[9:]])


def test_a_tokenizer_keeps_its_name_and_ids_in_its_json_form(named):
    name, tokenizer = named
    form = json.loads(json.dumps(tokenizer.to_json()))
    assert form["type"] == name
    assert is_tokenizer_name(name)
    restored = tokenizer_from_json(form)
    assert type(restored) is type(tokenizer)
    assert restored.encode(TEXT).tolist() == tokenizer.encode(TEXT).tolist()


def test_option_that_makes_a_tokenizer_is_known_unless_it_has_to_be_trained(named, monkeypatch):
    name, tokenizer = named
    charset = "".join(sorted(set(TEXT)))
    assert option_of(tokenizer, charset=charset) == (None if name == "bpe-300" else name)
    assert option_of(CharTokenizer(charset[::-1]), charset=charset) is None
    assert option_of(CharTokenizer(charset + "\U0010fffd"), charset=charset) is None
    merges = ["h e", "t he"]  # as if they were GPT-2's
    monkeypatch.setattr(bpe, "GPT2_MERGES_SHA256", hashlib.sha256("\n".join(merges).encode()).hexdigest())
    assert option_of(BPETokenizer("", merges, ["<|endoftext|>"]), charset=charset) == "gpt2"
    assert option_of(BPETokenizer("", merges, ["<|endoftext|>", "unused"]), charset=charset) is None
    assert option_of(BPETokenizer("gpt2", merges[:1], ["<|endoftext|>"]), charset=charset) is None


def test_a_tokenizer_decodes_what_it_encodes(named):
    _, tokenizer = named
    ids = tokenizer.encode(TEXT)
    assert ids.dtype == id_dtype(tokenizer.vocab_size)
    assert int(ids.max()) < tokenizer.vocab_size
    assert tokenizer.decode(ids) == tokenizer.decode(ids.tolist()) == TEXT


@pytest.mark.parametrize("name", TOKENIZERS)
def test_every_name_is_explained(name):
    assert f"{name}: " in DataConfig.__dataclass_fields__["tokenizer"].metadata["help"]
    assert f"`{name}`" in (ROOT / "docs/your-text.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("length", [1, 2, 3, 50])
def test_a_tokenizer_in_parts_gives_the_ids_and_the_text_of_the_whole(named, length):
    _, tokenizer = named
    encoder, decoder = tokenizer.encoder(), tokenizer.decoder()
    starts = range(0, len(TEXT), length)
    parts = [encoder.encode(TEXT[n : n + length], start=n, final=n == starts[-1]) for n in starts]
    ids = tokenizer.encode(TEXT)
    assert np.concatenate(parts).tolist() == ids.tolist()
    texts = [decoder.decode(ids[n : n + length]) for n in range(0, len(ids), length)]
    assert "".join([*texts, decoder.decode([], final=True)]) == TEXT


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=50)
@given(text=ANY_TEXT.filter(bool))
def test_any_text_is_the_same_after_the_json_form(name, text):
    tokenizer = make_tokenizer(name, charset="".join(sorted(set(text))), read_chunks=lambda: [TEXT])
    restored = tokenizer_from_json(json.loads(json.dumps(tokenizer.to_json())))
    assert type(restored) is type(tokenizer)
    assert restored.vocab_size == tokenizer.vocab_size
    assert restored.encode(text).tolist() == tokenizer.encode(text).tolist()
    assert restored.decode(restored.encode(text)) == text


def test_each_field_of_a_json_form_is_needed_and_has_its_type(named):
    _, tokenizer = named
    form = dict(tokenizer.to_json())
    for field in form:
        without = {name: value for name, value in form.items() if name != field}
        for wrong in (without, *({**form, field: value} for value in (None, 5, {"a": 0}, [None], [["a", "b"]]))):
            with pytest.raises(UserError, match="prepare the data again"):
                tokenizer_from_json(wrong)


@pytest.mark.parametrize(
    "form",
    [None, [], {}, "byte", 5, {"type": "bpe"}, {"type": ["char"]}, {"chars": "ab"}, {"type": "char"}]
    + [{"type": "char", "chars": chars} for chars in ("", "aa", None, 5, ["a", "b"], {"a": 0})],
)
def test_invalid_json_form_is_refused(form):
    with pytest.raises(UserError, match="prepare the data again"):
        tokenizer_from_json(form)
