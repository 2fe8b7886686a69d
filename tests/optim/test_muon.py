"""Muon against PyTorch's Muon and against singular values. Parameters outside the blocks are updated by AdamW."""

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


def make_model():
    torch.manual_seed(0)
    return GPT(CONFIG.subset(NetworkConfig), 11)


def set_equal_random_gradients(model, other_model):
    for parameter, other in zip(model.parameters(), other_model.parameters(), strict=True):
        parameter.grad = torch.randn_like(parameter)
        other.grad = parameter.grad.clone()


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 24, 8), (2, 8, 32)])
def test_orthogonalize_brings_singular_values_near_one_and_keeps_singular_vectors(shape):
    torch.manual_seed(1)
    matrices = torch.randn(shape) * torch.logspace(-3, 3, shape[0])[:, None, None]
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    in_singular_basis = left.mT @ orthogonalize(matrices) @ right.mT
    values = in_singular_basis.diagonal(dim1=-2, dim2=-1)
    assert values.min() > 0.3  # the smallest of a square matrix is far below the others, and is raised only in part
    assert values.max() < 1.3
    assert (in_singular_basis - torch.diag_embed(values)).abs().max() < 1e-3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_steps_are_close_to_those_of_torch_optim_muon(dtype):
    """Not equal: PyTorch's computes the Newton-Schulz iteration in bfloat16."""
    model, expected_model = make_model(), make_model()
    optimizer = build.make_optimizer(model, CONFIG.replace({"dtype": dtype}))
    assert isinstance(optimizer, Muon)
    assert optimizer.newton_schulz_dtype == getattr(torch, dtype)
    matrices = {name: p for name, p in expected_model.named_parameters() if ".h." in name and p.dim() == 2}
    expected = torch.optim.Muon(matrices.values(), lr=0.03, weight_decay=0.1, momentum=0.9, adjust_lr_fn="original")
    for _ in range(3):
        set_equal_random_gradients(model, expected_model)
        build.set_learning_rates(optimizer, 10_000_000, CONFIG.replace({"decay_lr": False}))
        optimizer.step()
        expected.step()
    updated = dict(model.named_parameters())
    initial = dict(make_model().named_parameters())
    for name, parameter in matrices.items():
        distance = (updated[name] - parameter).norm() / (parameter - initial[name]).norm()
        assert distance < 0.03, name


def test_float16_keeps_gradients_that_are_below_its_smallest_number():
    """As on a GPU without bfloat16. The update does not depend on the scale of the gradient, however small."""
    updates = []
    for scale in (1.0, 1e-9):
        model, other = make_model(), make_model()
        optimizer = build.make_optimizer(model, CONFIG)
        assert isinstance(optimizer, Muon)
        optimizer.newton_schulz_dtype = torch.float16
        torch.manual_seed(2)
        set_equal_random_gradients(model, other)
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad.mul_(scale)
        optimizer.step()
        updates.append(model.transformer.h[0].attn.c_attn.weight - other.transformer.h[0].attn.c_attn.weight)
    torch.testing.assert_close(*updates, atol=1e-4, rtol=0)
    assert updates[0].abs().mean() > 1e-3


@pytest.mark.parametrize(
    ("dtype", "device", "capability", "expected"),
    [
        ("float16", "cpu", None, torch.float32),  # a CPU has no fast products in float16
        ("bfloat16", "cpu", None, torch.bfloat16),
        ("float16", "cuda", (7, 5), torch.float16),
        ("bfloat16", "cuda", (7, 5), torch.float16),
        ("bfloat16", "cuda", (8, 0), torch.bfloat16),
        ("float32", "cuda", (8, 0), torch.float32),
    ],
)
def test_the_iteration_is_in_a_format_that_the_device_multiplies_fast(monkeypatch, dtype, device, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert build.newton_schulz_dtype(dtype, torch.device(device)) == expected


def test_muon_updates_block_matrices_and_adamw_everything_else():
    model, adamw_model = make_model(), make_model()
    optimizer = build.make_optimizer(model, CONFIG)
    adamw = build.make_optimizer(adamw_model, CONFIG.replace({"optimizer": "adamw"}))
    assert isinstance(optimizer, Muon)
    for _ in range(3):
        set_equal_random_gradients(model, adamw_model)
        optimizer.step()
        adamw.step()
    for (name, parameter), other in zip(model.named_parameters(), adamw_model.parameters(), strict=True):
        assert torch.equal(parameter, other) == (".h." not in name or parameter.dim() < 2), name


def test_muon_rate_is_a_fixed_multiple_of_the_adamw_rate():
    optimizer = build.make_optimizer(make_model(), CONFIG)
    for step in (0, 50, 1000, 4999):
        build.set_learning_rates(optimizer, step, CONFIG)
        rates = {group.get("muon_momentum"): group["lr"] for group in optimizer.param_groups}
        assert rates[None] == learning_rate(step, CONFIG)
        assert rates[0.9] == pytest.approx(3 * rates[None])


def test_matrix_with_zero_gradient_only_decays():
    model = make_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build.make_optimizer(model, CONFIG)
    build.set_learning_rates(optimizer, 0, CONFIG.replace({"decay_lr": False}))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        if ".h." in name and parameter.dim() == 2:
            torch.testing.assert_close(parameter.detach(), before[name] * (1 - 0.03 * 0.1))
