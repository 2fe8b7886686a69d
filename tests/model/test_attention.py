"""Attention against PyTorch's own formula, and rotary positions against complex numbers."""

import math

import pytest
import torch

from nanogpt_lite.model import attention
from nanogpt_lite.model.attention import attend
from nanogpt_lite.model.rotary import Rotary, rotate


def parts(rows, new, seen, dtype=torch.float32):
    torch.manual_seed(rows)
    return [
        torch.randn(rows, 3, length, 8, dtype=dtype, requires_grad=True) for length in (new, seen, seen)
    ]  # queries, keys, values


def by_definition(query, key, value):
    """Equation 1 of the paper; a later token is not seen."""
    T, S = query.size(2), key.size(2)
    scores = query @ key.mT / math.sqrt(8)
    later = torch.arange(S) > torch.arange(S - T, S)[:, None]
    return scores.masked_fill(later, -math.inf).softmax(-1) @ value


@pytest.mark.parametrize(("new", "seen"), [(1, 1), (1, 9), (9, 9), (4, 9), (64, 64), (65, 65)])
def test_outputs_and_gradients_are_those_of_the_definition(new, seen):
    assert attention.MATMUL_ATTENTION_MAX_LEN[torch.float32] == 64
    given = parts(2, new, seen)
    ours, theirs = attend(*given), by_definition(*given)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    weight = torch.randn_like(ours)
    gradients = [torch.autograd.grad((y * weight).sum(), given) for y in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [256, 257])
def test_bfloat16_is_near_it(length):
    given = [part.detach().bfloat16() for part in parts(2, length, length)]
    expected = by_definition(*(part.double() for part in given))
    assert (attend(*given).double() - expected).abs().max() < 0.02


def test_dropout_overlooks_tokens_and_weighs_the_others_up():
    query, key, _ = parts(4, 32, 32)
    seen = torch.eye(32).expand(4, 3, 32, 32)  # the outputs are the weights themselves
    weights = attend(query, key, seen)
    torch.manual_seed(7)
    shares = (attend(query, key, seen, dropout=0.25) / weights)[weights > 0]
    assert set(shares.mul(3).round(decimals=3).tolist()) == {0.0, 4.0}
    assert (shares == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)


def test_rotary_positions_are_turns_in_the_plane():
    """A pair of numbers as one complex number, times e^(i angle): the formula of the paper (equation 34)."""
    x = torch.randn(2, 3, 7, 16)
    turned = torch.view_as_complex(torch.stack(rotate(x, Rotary(16, 16)(torch.arange(4, 11))).chunk(2, dim=-1), dim=-1))
    before = torch.view_as_complex(torch.stack(x.chunk(2, dim=-1), dim=-1).contiguous())
    angles = torch.tensor([[place * (10 * 16) ** (-pair / 8) for pair in range(8)] for place in range(4, 11)])
    torch.testing.assert_close(turned, before * torch.exp(1j * angles), atol=1e-5, rtol=1e-5)


def test_rotary_attention_depends_on_distance_alone():
    def at(x, place):
        return rotate(x, Rotary(16, 16)(torch.tensor([place])))

    query, key = torch.randn(2, 1, 1, 1, 16)
    scores = [(at(query, past + 3) * at(key, past)).sum().item() for past in range(12)]
    assert scores == pytest.approx([scores[0]] * 12, abs=1e-4)
    assert scores[0] != pytest.approx((at(query, 4) * at(key, 0)).sum().item(), abs=1e-3)
