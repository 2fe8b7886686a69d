"""The trend of a val loss: each kind, at its limits, and evaluations as records of each version have them."""

import pytest

from nanogpt_lite.diagnosis.loss_trend import RISE, Evaluation, Trend, best_evaluation, val_loss_trend


def curve(val_losses, train_losses, alone=None):
    return [
        Evaluation(10 * number, train, val, val if alone is None else alone[number - 1])
        for number, (train, val) in enumerate(zip(train_losses, val_losses, strict=True), 1)
    ]


@pytest.mark.parametrize(
    ("val_losses", "train_losses", "expected"),
    [
        ([2.0], [2.5], Trend.LOWEST),
        ([2.0, 1.5], [2.5, 2.6], Trend.LOWEST),
        ([2.0, 1.5, 1.5], [2.5, 2.0, 1.9], Trend.LOWEST),
        ([2.0, 1.5, 1.5 + RISE / 2], [2.5, 2.0, 1.0], Trend.NOISE),
        ([0.0, RISE], [2.5, 1.0], Trend.NOISE),
        ([0.0, 1.01 * RISE], [2.5, 1.0], Trend.OVERFITTING),
        ([2.0, 1.5, 1.6], [2.5, 2.0, 1.9], Trend.OVERFITTING),
        ([2.0, 1.5, 1.6], [2.5, 2.0, 2.1], Trend.STALLED),
        ([2.5, 1.5, 2.0], [2.6, 1.0, 2.4], Trend.STALLED),  # that of the lowest val loss does not count
        ([2.0, 1.5, 2.6, 2.2], [2.5, 2.0, 2.7, 1.5], Trend.OVERFITTING),  # 2.1 on average, below the val loss
        ([2.0, 1.5, 2.6, 2.05], [2.5, 2.0, 2.7, 1.5], Trend.STALLED),
        ([5.0, 1.5, 1.4, 1.45, 1.7], [2.0, 2.0, 2.0, 1.9, 1.8], Trend.OVERFITTING),
    ],
)
def test_trend_is_told_by_both_losses_since_the_lowest(val_losses, train_losses, expected):
    assert val_loss_trend(curve(val_losses, train_losses)) is expected


def test_train_loss_beside_an_expert_is_compared_with_the_val_loss_of_the_network():
    """The mixture is far below both, so that it says nothing about the network."""
    losses = {"val_losses": [1.5, 1.4, 1.5], "train_losses": [2.5, 2.0, 2.1]}
    assert val_loss_trend(curve(**losses)) is Trend.STALLED
    assert val_loss_trend(curve(**losses, alone=[2.4, 2.1, 2.2])) is Trend.OVERFITTING


def test_best_evaluation_is_the_first_of_the_lowest():
    assert best_evaluation(curve([2.0, 1.5, 1.5], [3.0, 2.0, 1.0])).step == 20


@pytest.mark.parametrize("alone", [{}, {"network_val_loss": None}, {"network_val_loss": "1.7"}])
def test_evaluation_that_says_nothing_of_the_network_alone_has_the_same_loss_twice(alone):
    record = {"kind": "eval", "step": 7, "train_loss": 2.0, "val_loss": 1.5, "best_val_loss": 1.5, **alone}
    assert Evaluation.from_record(record) == (7, 2.0, 1.5, 1.5)


def test_evaluation_has_the_losses_of_its_record():
    record = {"kind": "eval", "step": 7, "train_loss": 2, "val_loss": 1.5, "network_val_loss": 1.75}
    assert Evaluation.from_record(record) == (7, 2, 1.5, 1.75)
