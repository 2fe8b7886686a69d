"""Attention's arithmetic: queries, keys and values in, what each token saw out. What they are made of is `model`'s.

Shapes: B batch, H heads, T new tokens, S tokens with what a cache holds, D head size.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# On a CPU, up to such a context, plain products take less time than PyTorch's fused kernel, forward and backward: in
# bfloat16, which the kernel multiplies without the processor's instructions for it, a fifth to a half, in float32 nine
# tenths (two cores of an AMD EPYC with AVX512-BF16, torch 2.13). Their memory grows with the square of the context.
PRODUCTS_UP_TO = {torch.bfloat16: 256, torch.float32: 64}


Turns = tuple[Tensor, Tensor]
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

    def forward(self, places: Tensor) -> Turns:
        """The angles at `places` (T,)."""
        return self.cos[places], self.sin[places]


def rotate(x: Tensor, turns: Turns) -> Tensor:
    """Queries or keys (..., T, D) with each pair of numbers turned."""
    cos, sin = (part.to(x.dtype) for part in turns)
    first, second = x.chunk(2, dim=-1)  # (..., T, D / 2)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def attend(query: Tensor, key: Tensor, value: Tensor, *, dropout: float = 0.0, seen: Tensor | None = None) -> Tensor:
    """What each new token sees of itself and of those before it, (B, H, T, D).

    Of `query` (B, H, T, D), `key` and `value` (B, H, S, D) the last tokens are the same ones, unless `seen` (T, S) says
    which ones each sees. `dropout` is the probability of overlooking one (Vaswani et al. 2017).
    """
    if key.dtype != query.dtype:  # those of a cache may have a format of their own
        return attend(query.to(key.dtype), key, value, dropout=dropout, seen=seen).to(query.dtype)
    if seen is not None:
        return F.scaled_dot_product_attention(query, key, value, seen, dropout)
    T, S = query.size(-2), key.size(-2)
    if query.is_cpu and 1 < T == S <= PRODUCTS_UP_TO.get(query.dtype, 0):
        return _by_products(query, key, value, dropout)
    # One new token sees everything; a whole prompt is causal; several after a cache need the lower right corner.
    corner = torch.ones(T, S, dtype=torch.bool, device=query.device).tril(S - T) if 1 < T < S else None
    return F.scaled_dot_product_attention(query, key, value, corner, dropout, is_causal=1 < T == S)


def _by_products(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    """The same by two products and a softmax, for S = T."""
    rows, seen, values = (part.flatten(0, 1) for part in (query, key, value))  # (B * H, T, D)
    T, D = query.shape[-2:]
    hidden = torch.full((T, T), -math.inf, dtype=query.dtype).triu(1)
    scores = torch.baddbmm(hidden, rows, seen.mT, alpha=1 / math.sqrt(D))  # (B * H, T, T)
    weights = F.dropout(scores.softmax(-1), dropout)
    return torch.bmm(weights, values).view(query.shape[:-1] + values.shape[-1:])
