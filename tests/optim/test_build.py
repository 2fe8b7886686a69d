"""The schedule against the formula, the optimizer against AdamW written out."""

import math

import pytest
import torch

from nanogpt_lite.config.options import NetworkConfig, TrainConfig
from nanogpt_lite.model.gpt import GPT
from nanogpt_lite.optim import build
from nanogpt_lite.optim.schedule import learning_rate


def nanogpt_schedule(it, learning_rate, min_lr, warmup_iters, lr_decay_iters):
    """The three cases in nanoGPT's words: warm-up, after the decay, cosine in between."""
    if it < warmup_iters:
        return learning_rate * (it + 1) / (warmup_iters + 1)
    if it > lr_decay_iters:
        return min_lr
    ratio = (it - warmup_iters) / (lr_decay_iters - warmup_iters)
    return min_lr + 0.5 * (1.0 + math.cos(math.pi * ratio)) * (learning_rate - min_lr)


@pytest.mark.parametrize("warmup", [0, 1, 100])
def test_schedule_equals_the_formula(warmup):
    config = TrainConfig(max_iters=1200, lr_decay_iters=1000, warmup_iters=warmup)
    for step in range(1200):
        expected = nanogpt_schedule(step, 1e-3, 1e-4, warmup, 1000)
        assert learning_rate(step, config) == pytest.approx(expected, rel=1e-12), step


def test_decay_follows_max_iters_unless_given():
    assert learning_rate(299, TrainConfig(max_iters=300)) == pytest.approx(1e-4, rel=0.01)
    assert learning_rate(299, TrainConfig(max_iters=300, lr_decay_iters=5000)) > 9e-4


def test_a_run_shorter_than_its_warm_up_only_warms_up():
    config = TrainConfig(max_iters=50, warmup_iters=100)
    assert [learning_rate(step, config) for step in (0, 49)] == [1e-3 / 101, 50e-3 / 101]


def test_constant_without_decay():
    config = TrainConfig(decay_lr=False, learning_rate=5e-5)
    assert {learning_rate(step, config) for step in range(6000)} == {5e-5}


def test_a_cooldown_is_a_straight_line_at_the_end():
    config = TrainConfig(max_iters=100, warmup_iters=4, cooldown=0.4, learning_rate=0.5, min_lr=0.1)
    rates = [learning_rate(step, config) for step in range(101)]
    assert rates[:4] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert rates[4:61] == [0.5] * 57
    assert rates[61:] == pytest.approx([0.5 - 0.01 * number for number in range(1, 41)])


def test_steps_equal_adamw_written_out():
    config = TrainConfig(
        n_layer=1, n_head=1, n_embd=8, block_size=4, bias=True, weight_decay=0.3, beta1=0.8, beta2=0.95
    )
    torch.manual_seed(0)
    model = GPT(config.subset(NetworkConfig), 7).double()
    optimizer = build.make_optimizer(model, config)
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    means = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in expected.items()}
    for step in range(1, 6):
        for name, parameter in model.named_parameters():
            parameter.grad = torch.randn_like(parameter)
            mean, square = means[name]
            mean.mul_(0.8).add_(0.2 * parameter.grad)
            square.mul_(0.95).add_(0.05 * parameter.grad**2)
            decay = 0.3 if parameter.dim() >= 2 else 0.0
            update = (mean / (1 - 0.8**step)) / ((square / (1 - 0.95**step)).sqrt() + 1e-8)
            expected[name] = expected[name] * (1 - 1e-3 * decay) - 1e-3 * update
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_what_the_optimizer_will_keep_is_known_before_its_first_step(optimizer):
    config = TrainConfig(n_layer=2, n_head=2, n_embd=16, block_size=8, dropout=0.0, optimizer=optimizer)
    model = GPT(config.subset(NetworkConfig), 11)
    made = build.make_optimizer(model, config)
    reserved = sorted(tuple(tensor.shape) for tensor in build.reserve_optimizer_state(made))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    made.step()
    kept = [slot for parameter in model.parameters() for slot in made.state[parameter].values()]
    assert reserved == sorted(tuple(tensor.shape) for tensor in kept)
