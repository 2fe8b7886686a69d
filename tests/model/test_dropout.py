import math

import pytest
import torch
from torch.nn import functional as F

from nanogpt_lite.model import dropout as dropout_module
from nanogpt_lite.model.dropout import LEVELS, dropout


def dropped(p, *shape, seed=1, dtype=torch.float32):
    torch.manual_seed(seed)
    return dropout(torch.ones(shape, dtype=dtype), p)


@pytest.mark.parametrize("p", [0.001, 0.1, 0.2, 0.5, 0.9])
def test_the_given_share_of_elements_is_zero_and_the_mean_stays(p):
    y = dropped(p, 1000, 1000)
    deviation = math.sqrt(p * (1 - p) / y.numel())
    assert (y == 0).double().mean().item() == pytest.approx(p, abs=5 * deviation + 1 / LEVELS)
    assert y.unique().tolist() == pytest.approx([0, 1 / (1 - p)], abs=2e-3)
    assert y.double().mean().item() == pytest.approx(1, abs=5 * deviation / (1 - p) + 1e-6)


def test_elements_are_dropped_independently_of_their_neighbours():
    """Each pattern of four elements, which come from one random number, is as frequent as by independent draws."""
    p, patterns = 0.3, (dropped(0.3, 400_000) == 0).view(-1, 4)
    counts = torch.bincount(patterns.int() @ torch.tensor([8, 4, 2, 1], dtype=torch.int32), minlength=16)
    probabilities = torch.tensor([p ** (k := pattern.bit_count()) * (1 - p) ** (4 - k) for pattern in range(16)])
    expected = probabilities * len(patterns)
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    assert chi_square < 44  # 15 degrees of freedom: exceeded once in 10,000 samples
    shifted = (patterns.flatten()[:-1] & patterns.flatten()[1:]).double().mean().item()
    assert shifted == pytest.approx(p * p, abs=0.005)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (5, 7, 3), (0, 4)])
def test_any_shape(shape):
    y = dropped(0.5, *shape)
    assert y.shape == shape
    assert set(y.flatten().tolist()) <= {0.0, 2.0}


def test_the_mask_depends_on_the_generator_but_not_on_dtype_or_threads():
    first, *others = (dropped(0.2, 64, 128, seed=seed) for seed in (1, 1, 2))
    assert first.equal(others[0])
    assert not first.equal(others[1])
    assert (dropped(0.2, 64, 128, dtype=torch.bfloat16) == 0).equal(first == 0)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert dropped(0.2, 64, 128).equal(first)
    finally:
        torch.set_num_threads(threads)


def test_the_gradient_has_the_same_mask():
    x = torch.randn(50, 50, requires_grad=True)
    y = dropout(x, 0.4)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0] * x, y)


def test_without_training_or_probability_the_input_is_returned():
    x = torch.randn(3)
    assert dropout(x, 0.5, training=False) is x
    assert dropout(x, 0.0) is x


def test_a_probability_close_to_one_keeps_the_result_finite():
    assert dropped(1 - 1e-9, 1000).isfinite().all()


def test_masks_that_are_not_fast_are_those_of_pytorch():
    x, results = torch.randn(8, 8), []
    for function in (lambda: dropout(x, 0.3, fast=False), lambda: F.dropout(x, 0.3)):
        torch.manual_seed(5)
        results.append(function())
    assert results[0].equal(results[1])


def test_other_devices_have_the_dropout_of_pytorch(monkeypatch):
    monkeypatch.setattr(dropout_module, "_random_mask", None)  # not called
    x = torch.ones(4, 4, device="meta")
    assert dropout(x, 0.5).is_meta


def test_a_compiled_network_has_the_dropout_of_pytorch():
    operators = []

    def backend(module, _inputs):
        operators.extend(node.target for node in module.graph.nodes if node.op == "call_function")
        return module.forward

    torch.compile(dropout, backend=backend, fullgraph=True)(torch.ones(4, 4), 0.5)
    assert F.dropout in operators
