"""Muon against PyTorch's own and against singular values; what is no matrix of a block is AdamW's, as ever."""

import pytest
import torch

from nanogpt_lite.config.options import NetworkConfig, TrainConfig
from nanogpt_lite.model.gpt import GPT
from nanogpt_lite.optim import build
from nanogpt_lite.optim.muon import Muon, orthogonalize
from nanogpt_lite.optim.schedule import learning_rate

CONFIG = TrainConfig(
    n_layer=2, n_head=2, n_embd=16, block_size=8, bias=True, tied=False, weight_decay=0.1, optimizer="muon",
    learning_rate=0.01, muon_learning_rate=0.03, muon_momentum=0.9,
)  # fmt: skip


def network():
    torch.manual_seed(0)
    return GPT(CONFIG.subset(NetworkConfig), 11)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 24, 8), (2, 8, 32)])
def test_singular_values_come_near_one_and_the_directions_stay(shape):
    torch.manual_seed(1)
    matrices = torch.randn(shape) * torch.logspace(-3, 3, shape[0])[:, None, None]
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    inside = left.mT @ orthogonalize(matrices) @ right.mT
    values = inside.diagonal(dim1=-2, dim2=-1)
    assert values.min() > 0.3  # the smallest of a square one is far below the others, and is brought up in part
    assert values.max() < 1.3
    assert (inside - torch.diag_embed(values)).abs().max() < 1e-3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_steps_equal_pytorchs_own(dtype):
    """PyTorch's computes in bfloat16, so nearly."""
    ours, theirs = network(), network()
    optimizer = build.make_optimizer(ours, CONFIG.replace({"dtype": dtype}))
    assert isinstance(optimizer, Muon)
    assert optimizer.products == getattr(torch, dtype)
    matrices = {name: p for name, p in theirs.named_parameters() if ".h." in name and p.dim() == 2}
    expected = torch.optim.Muon(matrices.values(), lr=0.03, weight_decay=0.1, momentum=0.9, adjust_lr_fn="original")
    for _ in range(3):
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        build.set_learning_rates(optimizer, 10_000_000, CONFIG.replace({"decay_lr": False}))
        optimizer.step()
        expected.step()
    moved = dict(ours.named_parameters())
    before = dict(network().named_parameters())
    for name, parameter in matrices.items():
        distance = (moved[name] - parameter).norm() / (parameter - before[name]).norm()
        assert distance < 0.03, name


def test_all_else_is_adamws():
    ours, alone = network(), network()
    optimizer = build.make_optimizer(ours, CONFIG)
    adamw = build.make_optimizer(alone, CONFIG.replace({"optimizer": "adamw"}))
    assert isinstance(optimizer, Muon)
    for _ in range(3):
        for one, other in zip(ours.parameters(), alone.parameters(), strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        optimizer.step()
        adamw.step()
    for (name, one), other in zip(ours.named_parameters(), alone.parameters(), strict=True):
        assert torch.equal(one, other) == (".h." not in name or one.dim() < 2), name


def test_its_rate_rises_and_falls_with_the_other():
    optimizer = build.make_optimizer(network(), CONFIG)
    for step in (0, 50, 1000, 4999):
        build.set_learning_rates(optimizer, step, CONFIG)
        rates = {group.get("muon_momentum"): group["lr"] for group in optimizer.param_groups}
        assert rates[None] == learning_rate(step, CONFIG)
        assert rates[0.9] == pytest.approx(3 * rates[None])


def test_without_a_gradient_a_matrix_only_decays():
    model = network()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build.make_optimizer(model, CONFIG)
    build.set_learning_rates(optimizer, 0, CONFIG.replace({"decay_lr": False}))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        if ".h." in name and parameter.dim() == 2:
            torch.testing.assert_close(parameter.detach(), before[name] * (1 - 0.03 * 0.1))
