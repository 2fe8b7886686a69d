"""The learning-rate schedule against nanoGPT's formula."""

import math

import pytest

from nanogpt_lite.config.options import TrainConfig
from nanogpt_lite.optim.schedule import learning_rate


def nanogpt_get_lr(it, learning_rate, min_lr, warmup_iters, lr_decay_iters):
    """The three cases in nanoGPT's order: warm-up, after the decay, cosine in between."""
    if it < warmup_iters:
        return learning_rate * (it + 1) / (warmup_iters + 1)
    if it > lr_decay_iters:
        return min_lr
    ratio = (it - warmup_iters) / (lr_decay_iters - warmup_iters)
    return min_lr + 0.5 * (1.0 + math.cos(math.pi * ratio)) * (learning_rate - min_lr)


@pytest.mark.parametrize("warmup", [0, 1, 100])
def test_cosine_schedule_equals_nanogpt(warmup):
    config = TrainConfig(max_iters=1200, lr_decay_iters=1000, warmup_iters=warmup)
    for step in range(1200):
        expected = nanogpt_get_lr(step, 1e-3, 1e-4, warmup, 1000)
        assert learning_rate(step, config) == pytest.approx(expected, rel=1e-12), step


def test_lr_decay_iters_defaults_to_max_iters():
    assert learning_rate(299, TrainConfig(max_iters=300)) == pytest.approx(1e-4, rel=0.01)
    assert learning_rate(299, TrainConfig(max_iters=300, lr_decay_iters=5000)) > 9e-4


def test_run_shorter_than_its_warmup_only_warms_up():
    config = TrainConfig(max_iters=50, warmup_iters=100)
    assert [learning_rate(step, config) for step in (0, 49)] == [1e-3 / 101, 50e-3 / 101]


def test_rate_is_constant_without_decay_lr():
    config = TrainConfig(decay_lr=False, learning_rate=5e-5)
    assert {learning_rate(step, config) for step in range(6000)} == {5e-5}


def test_cooldown_is_constant_then_linear():
    config = TrainConfig(max_iters=100, warmup_iters=4, cooldown=0.4, learning_rate=0.5, min_lr=0.1)
    rates = [learning_rate(step, config) for step in range(101)]
    assert rates[:4] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert rates[4:61] == [0.5] * 57
    assert rates[61:] == pytest.approx([0.5 - 0.01 * number for number in range(1, 41)])
