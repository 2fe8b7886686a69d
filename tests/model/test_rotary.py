"""Rotary position embedding against complex numbers."""

import pytest
import torch

from nanogpt_lite.model.rotary import RotaryEmbedding, apply_rotary


def test_rotation_equals_multiplication_by_a_complex_exponential():
    """A pair of channels as one complex number, times e^(i angle): equation 34 of Su et al. 2021."""
    x = torch.randn(2, 3, 7, 16)
    x1, x2 = apply_rotary(x, RotaryEmbedding(16, 16, 160.0)(torch.arange(4, 11), x.dtype)).chunk(2, dim=-1)
    rotated = torch.view_as_complex(torch.stack((x1, x2), dim=-1))
    before = torch.view_as_complex(torch.stack(x.chunk(2, dim=-1), dim=-1).contiguous())
    angles = torch.tensor([[position * (10 * 16) ** (-pair / 8) for pair in range(8)] for position in range(4, 11)])
    torch.testing.assert_close(rotated, before * torch.exp(1j * angles), atol=1e-5, rtol=1e-5)


def test_attention_scores_depend_only_on_distance():
    def rotate_to(x, position):
        return apply_rotary(x, RotaryEmbedding(16, 16, 160.0)(torch.tensor([position]), x.dtype))

    q, k = torch.randn(2, 1, 1, 1, 16)
    scores = [(rotate_to(q, start + 3) * rotate_to(k, start)).sum().item() for start in range(12)]
    assert scores == pytest.approx([scores[0]] * 12, abs=1e-4)
    assert scores[0] != pytest.approx((rotate_to(q, 4) * rotate_to(k, 0)).sum().item(), abs=1e-3)
