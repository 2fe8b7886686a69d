"""The sentence about a loss: one for each shape of a curve, beside n-gram models with known losses."""

import re
from typing import Any

import pytest

from nanogpt_lite.diagnosis.loss_trend import Evaluation
from nanogpt_lite.diagnosis.ngram_baseline import NgramLosses
from nanogpt_lite.diagnosis.verdict import FEW_VAL_TOKENS, give_verdict

BASELINES = NgramLosses(unigram=3.2, bigram=2.5, five_gram=2.0)
HEALTHY = [(100, 2.4), (200, 2.0), (300, 1.802), (400, 1.8)]
FALLING = [(100, 2.9), (200, 2.5), (300, 2.2), (400, 1.9)]
OVERFITTING = [(100, 2.1), (200, 1.8), (300, 1.9), (400, 2.3)]
FLAT_ABOVE = [(100, 2.9), (200, 2.6), (300, 2.501), (400, 2.5)]
NOTHING_LEARNED = [(100, 3.5), (200, 3.3), (300, 3.3), (400, 3.3)]


def verdict_on(curve, baselines, *, loss=None, train_losses=None, **facts):
    """The verdict on a run with these val losses; without `train_losses`, the train loss falls at each evaluation."""
    train_losses = train_losses or [4 - 0.1 * number for number in range(len(curve))]
    points = [Evaluation(step, train, val, val) for (step, val), train in zip(curve, train_losses, strict=True)]
    best = min(point.val_loss for point in points)
    facts = {"vocab_size": 65, "val_tokens": 10_000, "has_recipe_steps": True, "could_learn_more": False, **facts}
    loss = best if loss is None else loss
    return give_verdict(loss, points, baselines, **{"network_loss": loss, "more_time": "`minutes=1`", **facts})


@pytest.mark.parametrize(
    ("curve", "could_learn_more", "sentence"),
    [
        (
            HEALTHY,
            False,
            r"^normal: 0\.20 nats below the 5-gram .* counts; more text would help, perhaps also `minutes=7`$",
        ),
        (HEALTHY, True, r"^normal: 0\.20 nats below"),  # it no longer falls
        (
            FALLING,
            True,
            r"^normal so far: 0\.10 nats below the 5-gram .*still falling; train a new run for longer: `minutes=7`$",
        ),
        (FALLING, False, r"^normal: 0\.10 nats below"),  # the schedule ended where the recipe ends
        (OVERFITTING, True, r"^overfitting since step 200: .* is 0\.20 nats below .*, and the last one is 0\.50 worse"),
        (FLAT_ABOVE, True, r"^something may be wrong: 0\.50 nats above .*`learning_rate` that is too high or too low"),
        (NOTHING_LEARNED, True, r"^something is wrong: the network is no better .* and n-gram models are; .*`learning"),
    ],
)
def test_each_shape_of_a_curve_has_its_sentence(curve, could_learn_more, sentence):
    said = verdict_on(curve, BASELINES, could_learn_more=could_learn_more, more_time="`minutes=7`")
    assert "\n" not in said
    assert re.search(sentence, said)


@pytest.mark.parametrize(
    ("curve", "of_short_run", "of_whole_run"),
    [
        ([(5, 2.9)], r"^0\.90 nats above .*, and still falling; train", r"^something may be wrong: 0\.90 nats above"),
        (
            [
                (100, 3.1),
                (200, 2.9),
                (300, 2.7),
                (400, 2.5),
            ],  # as of a learning rate that is too high until it is lowered
            r"^0\.50 nats above .*, and still falling; train",
            r"^something may be wrong: 0\.50 nats above .*`learning_rate`.*\. If it is none of these, train a "
            r"new run for longer: `minutes=1`$",
        ),
        (
            [(5, 4.0)],
            r"^2\.00 nats above .*, and still falling; train",
            r"^something is wrong: the network is no better",
        ),
        (
            [(100, 2.9), (200, 2.5), (300, 2.3), (400, 2.19)],  # at most a tenth above the 5-gram model
            r"^normal so far: 0\.19 nats above .*, and still falling; train",
            r"^normal so far: 0\.19 nats above .*, and still falling; train",
        ),
    ],
)
def test_a_falling_loss_far_above_the_5_gram_model_is_wrong_after_the_steps_of_the_recipe(
    curve, of_short_run, of_whole_run
):
    for has_recipe_steps, sentence in ((False, of_short_run), (True, of_whole_run)):
        said = verdict_on(curve, BASELINES, could_learn_more=True, has_recipe_steps=has_recipe_steps)
        assert re.search(sentence, said)


def test_a_short_text_may_end_slightly_above_the_5_gram_model():
    near = [(10, 2.5), (20, 2.2), (30, 2.11), (40, 2.1)]
    said = verdict_on(near, BASELINES)
    assert said.startswith("normal: 0.10 nats above the 5-gram model")


def test_noise_after_the_best_step_is_no_overfitting():
    said = verdict_on([*HEALTHY, (500, 1.805)], BASELINES)
    assert said.startswith("normal")


def test_a_train_loss_that_rises_as_well_is_no_overfitting():
    """As of a learning rate that is too high: the network learns nothing by heart."""
    said = verdict_on(OVERFITTING, BASELINES, train_losses=[2.4, 2.3, 2.35, 2.5])
    assert said.startswith("training did not get on since step 200: the loss of the best checkpoint, which is used, ")
    assert said.endswith("is 0.50 worse, while the train loss did not fall. Give a lower `learning_rate`")
    said = verdict_on(OVERFITTING, BASELINES, train_losses=[2.2, 1.9, 2.2, 2.2])
    assert said.startswith("overfitting since step 200"), "the train loss is below the val loss"


def test_a_loss_of_few_tokens_is_said_to_be_rough():
    few, more = (verdict_on(HEALTHY, BASELINES, val_tokens=n) for n in (FEW_VAL_TOKENS, FEW_VAL_TOKENS + 1))
    assert few == f"{more}. A loss of only 500 val tokens is rough"


def test_a_loss_of_a_uniform_guess_is_wrong_also_where_n_grams_are_worse():
    guess = [(10, 0.7), (20, 0.7)]
    worse = NgramLosses(unigram=0.9, bigram=0.9, five_gram=0.9)
    said = verdict_on(guess, worse, vocab_size=2)
    assert said.startswith("something is wrong: neither the network nor n-gram models")


@pytest.mark.parametrize("longer", [4.5, 3.2, 3.195])  # as the unigram model is, or worse
def test_no_learning_rate_is_to_blame_where_n_grams_are_no_better_than_single_tokens(longer):
    """Random text, or two languages one after the other."""
    baselines = NgramLosses(unigram=3.2, bigram=longer, five_gram=longer)
    for curve in (NOTHING_LEARNED, [(100, 3.3), (200, 4.0)]):
        said = verdict_on(curve, baselines)
        assert said.startswith("something is wrong: neither the network nor n-gram models")
        assert "`learning_rate`" not in said


@pytest.mark.parametrize("unigram", [0.0, 3.1])  # one character, or one line
def test_a_text_that_repeats_itself_is_neither_normal_nor_wrong(unigram):
    for curve in ([(10, 0.0003), (20, 0.0)], [(10, 0.0), (20, 0.0001)], [(10, 0.005)]):
        baselines = NgramLosses(unigram=unigram, bigram=unigram / 3, five_gram=unigram / 100)
        said = verdict_on(curve, baselines, vocab_size=31, could_learn_more=True)
        assert said.startswith("there is nothing more to learn: the text repeats itself")


def test_hundredths_of_a_nat_are_not_far_from_a_5_gram_model_of_an_almost_predictable_text():
    baselines = NgramLosses(unigram=0.09, bigram=0.05, five_gram=0.04)
    said = verdict_on([(10, 0.05), (20, 0.05)], baselines, vocab_size=25)
    assert said.startswith("normal: 0.01 nats above")


def test_the_loss_over_the_whole_split_is_compared_and_not_that_of_the_evaluations():
    assert verdict_on(HEALTHY, BASELINES, loss=1.9).startswith("normal: 0.10 nats below the 5-gram model")


MIXTURE = [(100, 1.95), (200, 1.94), (300, 1.93), (400, 1.93)]  # never worse than the counts in it


@pytest.mark.parametrize(
    ("network_losses", "could_learn_more", "sentence"),
    [
        ([2.4, 2.0, 1.96, 1.96], True, r"^normal: 0\.07 nats below"),
        ([2.9, 2.5, 2.3, 2.1], True, r"^normal so far: 0\.07 nats below .*, and still falling"),
        (
            [2.6, 2.5, 2.5, 2.5],
            True,
            r"^something may be wrong: the network alone is 0\.50 nats above .*`learning_rate`",
        ),
        ([9.9, 9.9, 9.9, 9.9], True, r"^something is wrong: the network is no better .* and n-gram models are; "),
    ],
)
def test_an_n_gram_expert_does_not_hide_a_network_that_learns_nothing(network_losses, could_learn_more, sentence):
    points = [Evaluation(step, 2.5, val, alone) for (step, val), alone in zip(MIXTURE, network_losses, strict=True)]
    said = give_verdict(
        1.93,
        points,
        BASELINES,
        network_loss=network_losses[-1],
        vocab_size=65,
        val_tokens=10_000,
        has_recipe_steps=False,
        could_learn_more=could_learn_more,
        more_time="`minutes=1`",
    )
    assert re.search(sentence, said)


def test_the_interval_of_the_evaluations_is_rounded_and_the_last_quarter_begins_at_the_one_before():
    flat_at_the_end = [(78, 2.9), (156, 2.5), (234, 2.1), (309, 2.095)]
    assert "still falling" not in verdict_on(flat_at_the_end, BASELINES, could_learn_more=True, has_recipe_steps=False)
    falling = [*flat_at_the_end[:3], (309, 2.05)]
    assert "still falling" in verdict_on(falling, BASELINES, could_learn_more=True, has_recipe_steps=False)
    short = [(4, 3.2), (8, 2.9), (12, 2.7), (16, 2.5), (20, 2.4), (24, 2.3), (28, 2.255), (30, 2.25)]
    assert "still falling" in verdict_on(short, BASELINES, could_learn_more=True, has_recipe_steps=False)


def test_overfitting_of_a_network_beside_an_n_gram_expert_is_told_by_its_own_losses():
    points = [Evaluation(1, 1.9, 1.7, 1.9), Evaluation(2, 1.6, 1.55, 1.7), Evaluation(3, 1.62, 1.58, 1.78)]
    facts: dict[str, Any] = {"vocab_size": 65, "val_tokens": 10_000, "has_recipe_steps": True}
    facts |= {"could_learn_more": False, "more_time": "`minutes=1`"}
    assert give_verdict(1.55, points, BASELINES, network_loss=1.7, **facts).startswith("overfitting since step 2")
