"""The losses of Kneser-Ney models: against an implementation with dictionaries, and by what holds for any text."""

import math
import pydoc_data.topics
from collections import Counter, defaultdict
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_lite.diagnosis import ngram_baseline
from nanogpt_lite.diagnosis.ngram_baseline import NgramLosses, baseline_losses, kneser_ney_losses
from nanogpt_lite.errors import UserError
from nanogpt_lite.ngrams import counted_tokens

ORDERS = [1, 2, 3, 4, 5]
RANDOM_TEXTS = [(0, 2, 300), (1, 5, 600), (2, 9, 600), (3, 30, 200)]  # seed, vocab_size, length
BOOK = "".join(text for _, text in sorted(pydoc_data.topics.topics.items())).encode("utf-8")
TEXT = np.frombuffer(BOOK[:20_000], np.uint8).astype(np.uint16)


class DictionaryModel:
    """A model of one order, from the formula of Chen and Goodman (1999) with dictionaries and exact fractions."""

    def __init__(self, train, vocab_size, order):
        self.vocab_size = vocab_size
        text = [None, *train]  # None: the start of the text
        self.counts, self.discounts = {}, {}
        for k in range(1, order + 1):
            if k == order:
                counts = dict(Counter(tuple(train[i : i + k]) for i in range(len(train) - k + 1)))
            else:
                before = defaultdict(set)
                for i in range(len(train) - k + 1):
                    before[tuple(train[i : i + k])].add(text[i])
                counts = {gram: len(tokens) for gram, tokens in before.items()}
            self.counts[k] = defaultdict(dict)
            for gram, count in counts.items():
                self.counts[k][gram[:-1]][gram[-1]] = count
            self.discounts[k] = self.discounts_for(counts.values())

    @staticmethod
    def discounts_for(counts):
        n1, n2, n3, n4 = (sum(count == n for count in counts) for n in (1, 2, 3, 4))
        if n1 == 0:
            return [Fraction(0), *[Fraction(1, 2)] * 3]
        y = Fraction(n1, n1 + 2 * n2)
        d1 = 1 - 2 * y * n2 / n1
        d2 = 2 - 3 * y * n3 / n2 if n2 else 0
        d3 = 3 - 4 * y * n4 / n3 if n3 else 0
        return [0, *(d if d > 0 else y for d in (d1, d2, d3))]

    def probability(self, context, token):
        k = len(context) + 1
        lower = self.probability(context[1:], token) if context else Fraction(1, self.vocab_size)
        followers = self.counts[k].get(tuple(context))
        if not followers:
            return lower
        discount = {other: self.discounts[k][min(count, 3)] for other, count in followers.items()}
        kept = followers.get(token, 0) - discount.get(token, 0)
        return (kept + sum(discount.values()) * lower) / sum(followers.values())


def expected_loss(train, val, vocab_size, order):
    model = DictionaryModel(train, vocab_size, order)
    losses = [-math.log(model.probability(val[max(0, i - order + 1) : i], val[i])) for i in range(1, len(val))]
    return sum(losses) / len(losses)


def losses_of(train, val, vocab_size, orders=ORDERS, dtype=np.uint16):
    return kneser_ney_losses(np.array(train, dtype), np.array(val, dtype), vocab_size=vocab_size, orders=orders)


def random_text(seed, length, vocab_size):
    """A text in which some tokens are frequent, and some follow each other often."""
    rng = np.random.default_rng(seed)
    words = [rng.geometric(0.4, rng.integers(1, 5)) - 1 for _ in range(12)]
    text = np.concatenate([words[index] for index in np.minimum(rng.geometric(0.2, length), 12) - 1])
    return (text[:length] % vocab_size).tolist()


@pytest.mark.parametrize(("seed", "vocab_size", "length"), RANDOM_TEXTS)
def test_losses_equal_those_of_a_model_with_dictionaries(seed, vocab_size, length):
    text = random_text(seed, length, vocab_size)
    train, val = text[: length - 60], text[length - 60 :]
    losses = losses_of(train, val, vocab_size)
    assert losses == pytest.approx({n: expected_loss(train, val, vocab_size, n) for n in ORDERS}, rel=0, abs=1e-9)


def test_random_texts_need_every_kind_of_discount():
    """So that the test above compares them all: three different ones, one that cannot be estimated, and none."""
    kinds = {
        len(set(discounts))
        for seed, vocab_size, length in RANDOM_TEXTS
        for discounts in DictionaryModel(random_text(seed, length - 60, vocab_size), vocab_size, 5).discounts.values()
    }
    assert kinds == {4, 3, 2}


@given(
    train=st.lists(st.integers(0, 3), max_size=12),
    val=st.lists(st.integers(0, 3), min_size=2, max_size=6),
    orders=st.lists(st.integers(1, 6), min_size=1, max_size=3),
)
@settings(max_examples=60, deadline=None)
def test_losses_of_tiny_texts_equal_those_of_a_model_with_dictionaries(train, val, orders):
    """Train tokens fewer than the order, or none; orders in any order."""
    losses = losses_of(train, val, 4, orders=orders)
    assert losses == pytest.approx({n: expected_loss(train, val, 4, n) for n in orders}, rel=0, abs=1e-9)


def test_the_top_order_does_not_change_the_losses_of_lower_orders():
    text = random_text(4, 500, 7)
    together = losses_of(text[:400], text[400:], 7)
    assert together == {n: losses_of(text[:400], text[400:], 7, orders=[n])[n] for n in ORDERS}


@pytest.mark.parametrize("context", [[0], [3, 1], [1, 0, 0, 2], [0, 1, 0, 1, 2], [6, 6, 6, 6], [5, 0]])
def test_probabilities_of_all_continuations_sum_to_one(context):
    """Token 6 is not in the train tokens, and token 5 only at their end."""
    train = [*(token % 5 for token in random_text(5, 400, 5)), 5]
    known = losses_of(train, context, 7) if len(context) > 1 else dict.fromkeys(ORDERS, 0.0)
    sums = dict.fromkeys(ORDERS, 0.0)
    for token in range(7):
        for order, loss in losses_of(train, [*context, token], 7).items():
            sums[order] += math.exp(known[order] * (len(context) - 1) - loss * len(context))
    assert sums == pytest.approx(dict.fromkeys(ORDERS, 1.0), abs=1e-12)


@pytest.mark.parametrize("vocab_size", [4, 50_257, 200_000])
def test_tokens_that_the_train_split_does_not_have_have_a_finite_loss(vocab_size):
    train = random_text(6, 300, 3)
    losses = losses_of(train, [0, vocab_size - 1, vocab_size - 1, 1], vocab_size, dtype=np.uint32)
    assert all(math.log(vocab_size) / 3 < loss < 2 * math.log(vocab_size) + 9 for loss in losses.values())


@pytest.mark.parametrize(("vocab_size", "dtype"), [(50_257, np.uint16), (200_000, np.uint32), (200_000, np.uint64)])
def test_large_ids_give_the_losses_of_small_ids(vocab_size, dtype):
    """With more than 85,500 distinct k-grams, keys are above 2**32, the range of the ids' own type."""
    text = np.random.default_rng(7).integers(0, 50, 100_000)
    train, val = text[:99_000], text[99_000:]
    moved = losses_of(train + vocab_size - 50, val + vocab_size - 50, vocab_size, orders=[5], dtype=dtype)
    assert moved == losses_of(train, val, vocab_size, orders=[5], dtype=np.int64)


def test_one_token_repeated_is_predicted_nearly_always():
    losses = losses_of([3] * 1000, [3] * 100, 10)
    assert all(0 < loss < 0.01 for loss in losses.values())


def test_a_train_split_without_tokens_gives_the_uniform_distribution():
    assert losses_of([], [1, 0, 2], 8) == pytest.approx(dict.fromkeys(ORDERS, math.log(8)))


def test_two_val_tokens_are_one_prediction():
    loss = losses_of([0, 1] * 20, [0, 1], 2, orders=[2])[2]
    assert loss == pytest.approx(-math.log(float(DictionaryModel([0, 1] * 20, 2, 2).probability([0], 1))))


@pytest.mark.parametrize("val", [[], [0]])
def test_a_val_split_without_a_token_to_predict_is_an_error_of_the_user(val):
    with pytest.raises(UserError, match=rf"its length is {len(val)}, and at least 2 tokens"):
        losses_of([0, 1], val, 2)
    with pytest.raises(UserError, match=rf"its length is {len(val)}, and at least 2 tokens"):
        baseline_losses(np.array([0, 1]), np.array(val, np.uint16), 2)


def test_an_id_outside_the_vocabulary_is_refused():
    for train, val in (([0, 2], [0, 1]), ([0, 1], [0, 2])):
        with pytest.raises(AssertionError):
            losses_of(train, val, 2)


def test_losses_of_a_real_text_fall_with_the_order():
    losses = kneser_ney_losses(TEXT[:18_000], TEXT[18_000:], vocab_size=256, orders=ORDERS)
    assert math.log(256) > losses[1] > losses[2] > losses[3] > losses[4] > losses[5] > 0.5
    assert losses[1] - losses[5] > 1


def test_losses_of_a_uniform_random_text_are_about_those_of_the_uniform_distribution():
    text = np.random.default_rng(8).integers(0, 32, 60_000)
    losses = kneser_ney_losses(text[:50_000], text[50_000:], vocab_size=32, orders=ORDERS)
    assert all(math.log(32) - 0.01 < loss < math.log(32) * 1.05 for loss in losses.values())


class TestBaselineLosses:
    def test_short_text_is_counted_and_predicted_whole_from_memory_maps(self, tmp_path):
        TEXT.tofile(tmp_path / "text.bin")
        text = np.memmap(tmp_path / "text.bin", np.uint16, mode="r")
        losses = kneser_ney_losses(TEXT[:18_000], TEXT[18_000:], vocab_size=256, orders=[1, 2, 5])
        assert baseline_losses(text[:18_000], text[18_000:], 256) == NgramLosses(losses[1], losses[2], losses[5])

    def test_long_train_split_is_counted_in_stretches_from_start_to_end(self, monkeypatch):
        monkeypatch.setattr(counted_tokens, "COUNTED_TOKENS", 4_000)
        monkeypatch.setattr(counted_tokens, "STRETCH_TOKENS", 1_000)
        val, counted = TEXT[18_000:], [TEXT[start : start + 1_000] for start in (0, 5_666, 11_333, 17_000)]
        losses = kneser_ney_losses(np.concatenate(counted), val, vocab_size=256, orders=[1, 2, 5])
        assert baseline_losses(TEXT[:18_000], val, 256) == NgramLosses(losses[1], losses[2], losses[5])

    def test_long_val_split_is_predicted_in_windows_after_their_context(self, monkeypatch):
        monkeypatch.setattr(ngram_baseline, "SCORED_TOKENS", 30)
        monkeypatch.setattr(ngram_baseline, "WINDOW_TOKENS", 10)
        train, val = random_text(9, 300, 6), random_text(10, 100, 6)
        models = [DictionaryModel(train, 6, order) for order in (1, 2, 5)]
        targets = [start + 4 + offset for start in (0, 43, 86) for offset in range(10)]
        expected = [
            np.mean([-math.log(model.probability(val[i - order + 1 : i], val[i])) for i in targets])
            for model, order in zip(models, (1, 2, 5), strict=True)
        ]
        losses = baseline_losses(np.array(train), np.array(val), 6)
        assert losses == pytest.approx(expected, abs=1e-9)

    def test_splits_need_only_a_length_and_slices(self):
        class Slices:
            def __init__(self, ids):
                self.ids = ids

            def __len__(self):
                return len(self.ids)

            def __getitem__(self, part):
                assert isinstance(part, slice)
                return self.ids[part]

        losses = baseline_losses(Slices(TEXT[:2_000]), Slices(TEXT[2_000:3_000]), 256)
        assert losses == baseline_losses(TEXT[:2_000], TEXT[2_000:3_000], 256)
        assert losses.unigram > losses.bigram > losses.five_gram

    def test_at_most_the_limits_are_read(self, monkeypatch):
        monkeypatch.setattr(counted_tokens, "COUNTED_TOKENS", 500)
        monkeypatch.setattr(counted_tokens, "STRETCH_TOKENS", 100)
        read = []

        class Endless:
            def __len__(self):
                return 10**12

            def __getitem__(self, part):
                assert 0 <= part.start < part.stop <= len(self)
                read.append(part.stop - part.start)
                return np.arange(part.start, part.stop) % 7

        baseline_losses(Endless(), Endless(), 7)
        assert read == [100] * 5 + [1_004] * 100
