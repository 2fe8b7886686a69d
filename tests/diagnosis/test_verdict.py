"""The sentence about a loss: one for each shape of a curve, beside n-gram models with known losses."""

import re

import pytest

from nanogpt_lite.diagnosis.ngram_baseline import NgramLosses
from nanogpt_lite.diagnosis.verdict import give_verdict

BASELINES = NgramLosses(unigram=3.2, bigram=2.5, five_gram=2.0)
HEALTHY = [(100, 2.4), (200, 2.0), (300, 1.802), (400, 1.8)]
FALLING = [(100, 2.9), (200, 2.5), (300, 2.2), (400, 1.9)]
OVERFITTING = [(100, 2.1), (200, 1.8), (300, 1.9), (400, 2.3)]
FLAT_ABOVE = [(100, 2.9), (200, 2.6), (300, 2.501), (400, 2.5)]
NOTHING_LEARNED = [(100, 3.5), (200, 3.3), (300, 3.3), (400, 3.3)]


@pytest.mark.parametrize(
    ("curve", "could_learn_more", "sentence"),
    [
        (HEALTHY, False, r"^normal: 0\.20 nats below the 5-gram model, which only counts; more text would help"),
        (HEALTHY, True, r"^normal: 0\.20 nats below"),  # it no longer falls
        (FALLING, True, r"^0\.10 nats below the 5-gram .*still falling; train a new run for longer: `minutes=7`$"),
        (FALLING, False, r"^normal: 0\.10 nats below"),  # the schedule ended where the recipe ends
        ([(5, 4.0)], True, r"^2\.00 nats above the 5-gram .*still falling"),  # a single evaluation
        (OVERFITTING, True, r"^overfitting since step 200: 0\.20 nats below .* and 0\.50 worse at the end; the best"),
        (FLAT_ABOVE, True, r"^something may be wrong: 0\.50 nats above .*`learning_rate` that is too high or too low"),
        (NOTHING_LEARNED, True, r"^something is wrong: the network is no better than the frequencies of single tokens"),
    ],
)
def test_each_shape_of_a_curve_has_its_sentence(curve, could_learn_more, sentence):
    said = give_verdict(curve, BASELINES, vocab_size=65, could_learn_more=could_learn_more, minutes=7)
    assert "\n" not in said
    assert re.search(sentence, said)


def test_a_short_text_may_end_slightly_above_the_5_gram_model():
    near = [(10, 2.5), (20, 2.2), (30, 2.11), (40, 2.1)]
    said = give_verdict(near, BASELINES, vocab_size=65, could_learn_more=False, minutes=1)
    assert said.startswith("normal: 0.10 nats above the 5-gram model")


def test_noise_after_the_best_step_is_no_overfitting():
    said = give_verdict([*HEALTHY, (500, 1.805)], BASELINES, vocab_size=65, could_learn_more=False, minutes=1)
    assert said.startswith("normal")


def test_a_loss_of_a_uniform_guess_is_wrong_also_where_n_grams_are_worse():
    guess = [(10, 0.7), (20, 0.7)]
    worse = NgramLosses(unigram=0.9, bigram=0.9, five_gram=0.9)
    said = give_verdict(guess, worse, vocab_size=2, could_learn_more=False, minutes=1)
    assert said.startswith("something is wrong")
