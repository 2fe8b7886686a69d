"""Attention's arithmetic: queries, keys and values in, what each token saw out. What they are made of is `model`'s.

Shapes: B batch, H heads, T new tokens, S tokens with what a cache holds, D head size.
"""

import torch
from torch import Tensor, nn

CosSin = tuple[Tensor, Tensor]
"""Cosines and sines of the angles by which pairs are turned, (T, D / 2) each."""


class Rotary(nn.Module):
    """The angles that grow with a token's place (RoPE; Su et al. 2021)."""

    cos: Tensor
    sin: Tensor

    def __init__(self, block_size: int, head_size: int) -> None:
        super().__init__()
        pairs = head_size // 2
        cos = sin = torch.empty(block_size, pairs)
        if not cos.is_meta:  # where there are no numbers, arithmetic would only import PyTorch's compiler, for a second
            # the slowest pair turns once in about as many tokens as ten contexts
            speeds = (10.0 * block_size) ** -(torch.arange(pairs) / pairs)
            angles = torch.outer(torch.arange(block_size), speeds)
            cos, sin = angles.cos(), angles.sin()
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, places: Tensor) -> CosSin:
        """The angles at `places` (T,)."""
        return self.cos[places], self.sin[places]


def rotate(x: Tensor, turns: CosSin) -> Tensor:
    """Queries or keys (..., T, D) with each pair of numbers turned."""
    cos, sin = (part.to(x.dtype) for part in turns)
    first, second = x.chunk(2, dim=-1)  # (..., T, D / 2)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
