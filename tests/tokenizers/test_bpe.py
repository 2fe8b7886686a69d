"""BPE against a plain implementation of GPT-2's algorithm, and against the GPT-2 tokenizer of transformers."""

import itertools
import json
import re
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_lite.errors import UserError
from nanogpt_lite.tokenizers import bpe
from nanogpt_lite.tokenizers.bpe import END_OF_TEXT, BPETokenizer
from nanogpt_lite.tokenizers.registry import tokenizer_from_json

TEXT = "".join(f"{n} green bottles hanging on the wall, and if {n % 7} shouldn't fall;\n\n" for n in range(300))
# GPT-2's pattern, for ASCII text
WORDS = re.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+"
)  # GPT-2's pattern, for ASCII text


@pytest.fixture(scope="module")
def trained():
    return bpe.train_bpe("bpe-400", [TEXT], 400)


def plain_bpe_encode(tokenizer, text):
    """GPT-2's algorithm: in each word, merge the pair whose merge comes first, until no pair has a merge."""
    form = tokenizer.to_json()
    byte_of = bpe.unicode_to_bytes()
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(form["merges"])}
    tokens = list(dict.fromkeys([*byte_of, *("".join(pair) for pair in ranks)]))
    char_of = {byte: char for char, byte in byte_of.items()}
    ids = []
    for word in WORDS.findall(text):
        parts = [char_of[byte] for byte in word.encode()]
        while len(parts) > 1:
            rank, position = min((ranks.get(pair, 10**9), n) for n, pair in enumerate(itertools.pairwise(parts)))
            if rank == 10**9:
                break
            parts[position : position + 2] = ["".join(parts[position : position + 2])]
        ids += [tokens.index(part) for part in parts]
    return ids


def test_ids_are_those_of_the_plain_algorithm(trained):
    assert trained.vocab_size == 400
    for text in (TEXT[:2000], "  two  spaces\t\n\n  x", "they're 100% it's", "new words: zebra?!"):
        assert trained.encode(text).tolist() == plain_bpe_encode(trained, text)
        assert trained.decode(trained.encode(text)) == text


@given(st.text(max_size=200), st.lists(st.integers(1, 40), min_size=1))
@settings(deadline=None)
def test_incremental_encoding_gives_the_ids_of_the_whole_text(trained, text, lengths):
    text = TEXT[:150] + text.encode("utf-8", "replace").decode() + TEXT[:150]
    encoder, ids, start = trained.encoder(), [], 0
    while start < len(text):
        length = lengths[start % len(lengths)]
        ids += encoder.encode(text[start : start + length]).tolist()
        start += length
    ids += encoder.encode("", final=True).tolist()
    assert ids == trained.encode(text).tolist()
    decoder = trained.decoder()
    assert "".join(decoder.decode([id_]) for id_ in ids) + decoder.decode([], final=True) == text


@given(st.text(st.characters() | st.sampled_from("\n\r\t \x85\xa0\u3000\x1c\ufeff\u0301'a1."), max_size=300))
@settings(deadline=None)
def test_splitting_long_texts_does_not_change_the_ids(trained, text):
    """With very short parts, against the library's encoding of the unsplit text."""
    tokenizer = BPETokenizer("", trained.to_json()["merges"], [END_OF_TEXT])
    text = "".join(piece + END_OF_TEXT for piece in (text[:100], text[100:])).encode("utf-8", "replace").decode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpe, "CHUNK_CHARS", 7)
        assert tokenizer.encode(text).tolist() == tokenizer.to_hf_tokenizer().encode(text).ids


@pytest.mark.parametrize("text", ["ab" * 300_000, "".join(map(str, range(100_000)))])
def test_long_text_without_spaces_is_trained_on_in_seconds(text):
    """As a single word, the library would take hours."""
    tokenizer = bpe.train_bpe("bpe-300", [text], 300)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode(text)) < 0.7 * len(text)


def test_training_does_not_depend_on_the_chunks(trained):
    chunks = [TEXT[start : start + 37] for start in range(0, len(TEXT), 37)]
    assert bpe.train_bpe("bpe-400", chunks, 400).to_json() == trained.to_json()


def test_incremental_encoder_splits_a_text_without_spaces(trained, monkeypatch):
    monkeypatch.setattr(bpe, "MAX_PENDING_CHARS", 1000)
    encoder = trained.encoder()
    ids = [id_ for _ in range(50) for id_ in encoder.encode("天地玄黃" * 10)]
    assert len(ids) > 500
    ids += encoder.encode("", final=True).tolist()
    assert trained.decode(ids) == "天地玄黃" * 500


def test_ids_are_those_of_transformers_gpt2_tokenizer(trained, tmp_path):
    from transformers import GPT2TokenizerFast  # type: ignore[attr-defined] # made on first use

    form = trained.to_json()
    ours = BPETokenizer("gpt2", form["merges"], [END_OF_TEXT])
    tokens = [*dict.fromkeys([*bpe.unicode_to_bytes(), *(m.replace(" ", "") for m in form["merges"])]), END_OF_TEXT]
    (tmp_path / "vocab.json").write_text(json.dumps({token: id_ for id_, token in enumerate(tokens)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(form["merges"]) + "\n")
    theirs = GPT2TokenizerFast.from_pretrained(tmp_path)
    for text in (TEXT[:500], "Ünïcödé 天地 🙂\r\n\t x", f"end{END_OF_TEXT}begin"):
        assert ours.encode(text).tolist() == theirs(text)["input_ids"]
        assert ours.decode(ours.encode(text)) == text


def test_json_form_makes_the_same_tokenizer(trained):
    restored = tokenizer_from_json(json.loads(json.dumps(trained.to_json())))
    assert restored.to_json() == trained.to_json()
    assert restored.encode(TEXT).tolist() == trained.encode(TEXT).tolist()


@pytest.mark.parametrize(
    "form",
    [
        {"merges": ["a"]},
        {"merges": ["a b c"]},
        {"merges": ["ab c"]},
        {"merges": ["a b"], "special": ["ab"]},
        {"merges": [], "special": ["", "x"]},
        {"merges": [], "special": ["<x>", "<x>"]},
        {"merges": [], "special": ["<x y>"]},
        {"merges": [], "special": ["\ud800"]},
        {"merges": [["a", "b"]]},
        {"merges": "a b"},
        {"type": "bpe", "merges": []},
    ],
)
def test_invalid_merges_or_special_tokens_are_refused(form):
    with pytest.raises(UserError, match="prepare the data again"):
        tokenizer_from_json({"type": "bpe-300", "special": [], **form})


def test_lone_surrogates_become_question_marks(trained):
    assert trained.decode(trained.encode("a\ud800b")) == "a?b"


def test_missing_package_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"pip install 'nanogpt-lite\[hf\]'"):
        bpe.train_bpe("bpe-300", [TEXT], 300)
