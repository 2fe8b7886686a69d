"""Text streams fed with given tokens: chunks, stop texts, incomplete characters."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_gpt import VOCAB, random_gpt

from nanogpt_lite.config.options import SampleConfig
from nanogpt_lite.generation import text_stream
from nanogpt_lite.tokenizers.byte import ByteTokenizer
from nanogpt_lite.tokenizers.char import CharTokenizer


def stream(tokenizer, ids_per_row, stop=""):
    """Return the chunks of `stream_texts`, with given ids in place of generated ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_stream, "generate", lambda *_, **__: iter(torch.tensor(ids_per_row).T))
        config = SampleConfig(num_samples=len(ids_per_row), stop=stop)
        return list(text_stream.stream_texts(random_gpt(), tokenizer, np.array([0]), config))


@settings(max_examples=150, deadline=None)
@given(st.text("ab\n", min_size=1, max_size=12), st.text("ab\n", min_size=1, max_size=12), st.text("ab\n", max_size=3))
def test_text_ends_before_the_stop_text(text_1, text_2, stop):
    length = min(len(text_1), len(text_2))
    texts = [text_1[:length], text_2[:length]]
    tokenizer = CharTokenizer("\nab")
    chunks = stream(tokenizer, [tokenizer.encode(text).tolist() for text in texts], stop)
    assert text_stream.join_texts(chunks) == [text.split(stop)[0] if stop else text for text in texts]


def test_only_a_possible_beginning_of_the_stop_text_is_held_back():
    tokenizer = CharTokenizer("\nab")
    chunks = stream(tokenizer, [tokenizer.encode("a\nb\n\na").tolist()], stop="\n\n")
    assert [chunk[0] for chunk in chunks] == ["a", "", "\nb", "", ""]


@settings(max_examples=50, deadline=None)
@given(st.text(min_size=1, max_size=8))
def test_byte_tokens_stream_as_whole_characters(text):
    ids = ByteTokenizer().encode(text).tolist()
    chunks = [chunk[0] for chunk in stream(ByteTokenizer(), [ids])]
    assert "".join(chunks) == text
    assert all(chunk == "" or chunk in text for chunk in chunks)


def test_incomplete_character_at_the_end_becomes_a_replacement_character():
    ids = list("a€".encode()[:-1])
    assert text_stream.join_texts(stream(ByteTokenizer(), [ids])) == ["a\ufffd"]


def test_generation_ends_when_all_texts_have_stopped():
    tokenizer = CharTokenizer("ab")
    chunks = stream(tokenizer, [tokenizer.encode(text).tolist() for text in ("abaaaa", "aabaaa")], stop="b")
    assert len(chunks) == 3
    assert text_stream.join_texts(chunks) == ["a", "aa"]


def chunks_of(tokenizer, ids_per_row, stops, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_stream, "generate", lambda *_, **__: iter(torch.tensor(ids_per_row).T))
        config = SampleConfig(num_samples=len(ids_per_row))
        return list(text_stream.stream_chunks(random_gpt(), tokenizer, np.array([0]), config, stops, **options))


def test_a_text_ends_before_the_first_of_several_stop_texts():
    tokenizer = CharTokenizer("abc")
    rows = [tokenizer.encode(text).tolist() for text in ("aabca", "cabaa")]
    steps = chunks_of(tokenizer, rows, ["bc", "ca", "never"])
    assert ["".join(step[row].text for step in steps) for row in range(2)] == ["aa", ""]
    assert [[chunk.is_stopped for chunk in step] for step in steps] == [
        [False] * 2,
        [False, True],
        [False, True],
        [True] * 2,
    ]
    assert [step[1].token for step in steps] == [2, 0, None, None], "a text that has ended has no more tokens"
    assert [step[0].token for step in steps] == rows[0][:4]


def test_of_two_stop_texts_that_end_together_the_longer_one_counts():
    tokenizer = CharTokenizer("abc")
    steps = chunks_of(tokenizer, [tokenizer.encode("aabca").tolist()], ["c", "abc"])
    assert "".join(step[0].text for step in steps) == "a"


def test_the_last_step_has_what_was_held_back_and_no_token():
    tokenizer = CharTokenizer("ab")
    (*_, last) = chunks_of(tokenizer, [tokenizer.encode("aab").tolist()], ["ba"])
    assert last == [text_stream.Chunk("b")]


def test_chunks_with_logits_have_the_tokens_and_texts_of_those_without():
    tokenizer, model = CharTokenizer("".join(map(chr, range(65, 65 + VOCAB)))), random_gpt()
    config = SampleConfig(num_samples=2, max_new_tokens=40, seed=3)
    plain, with_logits = (
        list(text_stream.stream_chunks(model, tokenizer, np.array([1, 2]), config, [], with_logits=asks))
        for asks in (False, True)
    )
    assert [[chunk[:2] for chunk in step] for step in plain] == [[chunk[:2] for chunk in step] for step in with_logits]
    assert all(chunk.logits is None for step in plain for chunk in step)
    for step in with_logits[:-1]:
        for chunk in step:
            assert chunk.logits is not None
            assert chunk.logits.shape == (VOCAB,)
