"""The optimizer that a config asks for, against AdamW written out."""

import dataclasses

import pytest
import torch

from nanogpt_lite.config.options import OPTIMIZERS, NetworkConfig, TrainConfig
from nanogpt_lite.model.gpt import GPT
from nanogpt_lite.optim import build


def test_steps_equal_adamw_written_out():
    config = TrainConfig(
        n_layer=1, n_head=1, n_embd=8, block_size=4, bias=True, weight_decay=0.3, beta1=0.8, beta2=0.95
    )
    torch.manual_seed(0)
    model = GPT(config.subset(NetworkConfig), 7).double()
    optimizer = build.make_optimizer(model, config)
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in expected.items()}
    for step in range(1, 6):
        for name, parameter in model.named_parameters():
            gradient = torch.randn_like(parameter)
            parameter.grad = gradient
            exp_avg, exp_avg_sq = moments[name]
            exp_avg.mul_(0.8).add_(0.2 * gradient)
            exp_avg_sq.mul_(0.95).add_(0.05 * gradient**2)
            weight_decay = 0.3 if parameter.dim() >= 2 else 0.0
            update = (exp_avg / (1 - 0.8**step)) / ((exp_avg_sq / (1 - 0.95**step)).sqrt() + 1e-8)
            expected[name] = expected[name] * (1 - 1e-3 * weight_decay) - 1e-3 * update
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-10, atol=1e-12)


def weights_after_a_step(config: TrainConfig) -> torch.Tensor:
    """All weights after the first two steps with random gradients."""
    torch.manual_seed(0)
    model = GPT(config.subset(NetworkConfig), 7).double()
    optimizer = build.make_optimizer(model, config)
    for step in range(2):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        build.set_learning_rates(optimizer, step, config)
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


OWN_OPTIONS = [field for field in dataclasses.fields(TrainConfig) if field.metadata["part_of"] == "optimizer"]


@pytest.mark.parametrize("field", OWN_OPTIONS, ids=lambda field: field.name)
def test_each_option_of_an_optimizer_changes_the_steps_of_that_one_alone(field):
    config = TrainConfig(n_layer=1, n_head=1, n_embd=8, block_size=4, warmup_iters=0)
    other = field.default / 2
    changed = {
        name: not torch.equal(
            weights_after_a_step(config.replace({"optimizer": name})),
            weights_after_a_step(config.replace({"optimizer": name, field.name: other})),
        )
        for name in OPTIMIZERS
    }
    assert {name for name, is_changed in changed.items() if is_changed} == {field.name.split("_")[0]}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_schedule_sets_the_learning_rate_of_all_parameters_of_every_optimizer(name):
    config = TrainConfig(n_layer=1, n_head=1, n_embd=8, block_size=4, optimizer=name, warmup_iters=9)
    optimizer = build.make_optimizer(GPT(config.subset(NetworkConfig), 7), config)
    build.set_learning_rates(optimizer, 4, config)
    at_step_4 = [group["lr"] for group in optimizer.param_groups]
    build.set_learning_rates(optimizer, 9, config)
    for half, peak in zip(at_step_4, (group["lr"] for group in optimizer.param_groups), strict=True):
        assert half == pytest.approx(peak / 2)


@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
def test_reserved_state_has_the_shapes_of_the_state_after_the_first_step(optimizer_name):
    config = TrainConfig(n_layer=2, n_head=2, n_embd=16, block_size=8, dropout=0.0, optimizer=optimizer_name)
    model = GPT(config.subset(NetworkConfig), 11)
    optimizer = build.make_optimizer(model, config)
    reserved = sorted(tuple(tensor.shape) for tensor in build.reserve_optimizer_state(optimizer))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = [tensor for parameter in model.parameters() for tensor in optimizer.state[parameter].values()]
    assert reserved == sorted(tuple(tensor.shape) for tensor in state)
