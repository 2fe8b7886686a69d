"""The longest span that a sample shares with the train tokens, against a search of all spans."""

import numpy as np
import pytest

from nanogpt_lite.diagnosis import copies
from nanogpt_lite.diagnosis.copies import longest_copies


def longest_by_search(sample, train):
    text = {tuple(train[i : i + n]) for n in range(1, len(sample) + 1) for i in range(len(train) - n + 1)}
    spans = [tuple(sample[i : i + n]) for n in range(len(sample), 0, -1) for i in range(len(sample) - n + 1)]
    return list(next((span for span in spans if span in text), ()))


@pytest.mark.parametrize("vocab_size", [1, 2, 3, 5, 50])
def test_the_longest_span_is_found(vocab_size):
    random = np.random.default_rng(vocab_size)
    for _ in range(20):
        train, *samples = (random.integers(0, vocab_size, random.integers(1, 40)) for _ in range(4))
        spans = [span.tolist() for span in longest_copies(samples, train)]
        assert spans == [longest_by_search(sample.tolist(), train.tolist()) for sample in samples]


@pytest.mark.parametrize("searched", [1, 2, 7])
def test_the_longest_span_is_found_also_across_parts_of_the_text(searched, monkeypatch):
    monkeypatch.setattr(copies, "SEARCHED_TOKENS", searched)
    random = np.random.default_rng(searched)
    for _ in range(20):
        train, *samples = (random.integers(0, 3, random.integers(1, 40)) for _ in range(4))
        spans = longest_copies(samples, train)
        assert [len(span) for span in spans] == [len(longest_by_search(s.tolist(), train.tolist())) for s in samples]
        for span, sample in zip(spans, samples, strict=True):
            assert span.tolist() in [sample[i : i + len(span)].tolist() for i in range(len(sample) + 1)]
            assert span.tolist() in [train[i : i + len(span)].tolist() for i in range(len(train) + 1)]


def test_a_part_without_a_longer_span_is_hashed_once(monkeypatch):
    searched = []
    monkeypatch.setattr(copies, "SEARCHED_TOKENS", 100)
    make_search = copies._make_search
    monkeypatch.setattr(
        copies, "_make_search", lambda train, length: searched.append((train[0], length)) or make_search(train, length)
    )
    sample, train = np.arange(20), np.concatenate([np.arange(12), np.full(88, 99), np.full(100, 98)])
    assert longest_copies([sample], train)[0].tolist() == list(range(12))
    assert [length for first, length in searched if first == 98] == [13]


def test_spans_with_the_same_hash_are_told_apart(monkeypatch):
    monkeypatch.setattr(copies, "_hash_windows", lambda ids, length: np.zeros(len(ids) - length + 1, np.uint64))
    spans = longest_copies([np.array([1, 2, 9]), np.array([7])], np.array([5, 1, 2, 3]))
    assert [span.tolist() for span in spans] == [[1, 2], []]


def test_each_sample_has_its_own_span_and_none_may_be_empty():
    train = np.arange(100) % 10
    assert [
        len(span) for span in longest_copies([np.arange(30) % 10, np.array([11, 12]), np.array([], int)], train)
    ] == [
        30,
        0,
        0,
    ]
