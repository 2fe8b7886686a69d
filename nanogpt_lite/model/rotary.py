"""Rotary position embedding (RoPE; Su et al. 2021): queries and keys are rotated by angles that grow with position.

The product of a rotated query and a rotated key depends only on the distance between their positions.
"""

import torch
from torch import Tensor, nn

CosSin = tuple[Tensor, Tensor]
"""Cosines and sines of the rotation angles, (T, D / 2) each."""


class RotaryEmbedding(nn.Module):
    """A table of the cosines and sines of all positions below `block_size`. Nothing in it is trained or saved.

    Pair i of the `head_size / 2` pairs of channels rotates by `theta ** (-2 i / head_size)` radians per position.
    """

    cos: Tensor  # (block_size, D / 2)
    sin: Tensor

    def __init__(self, block_size: int, head_size: int, theta: float) -> None:
        super().__init__()
        pairs = head_size // 2
        cos = sin = torch.empty(block_size, pairs)
        if not cos.is_meta:  # on the meta device, arithmetic would import PyTorch's compiler, which takes a second
            inv_freq = theta ** -(torch.arange(pairs) / pairs)
            angles = torch.outer(torch.arange(block_size), inv_freq)
            cos, sin = angles.cos(), angles.sin()
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, positions: Tensor, dtype: torch.dtype) -> CosSin:
        """Return the cosines and sines at `positions` (T,), in the dtype of the queries and keys."""
        return self.cos[positions].to(dtype), self.sin[positions].to(dtype)


def apply_rotary(x: Tensor, cos_sin: CosSin) -> Tensor:
    """Return queries or keys `x` (..., T, D) with each pair of channels rotated.

    A pair is channels i and i + D / 2, as in GPT-NeoX and in Hugging Face's Llama.
    """
    cos, sin = cos_sin
    x1, x2 = x.chunk(2, dim=-1)  # (..., T, D / 2)
    return torch.cat([x1 * cos - x2 * sin, x1 * sin + x2 * cos], dim=-1)
