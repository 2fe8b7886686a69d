"""Attention's arithmetic: queries, keys and values in, what each token saw out. What they are made of is `model`'s.

Shapes: B batch, H heads, T new tokens, S tokens with what a cache holds, D head size.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanogpt_lite.config.options import NetworkConfig
from nanogpt_lite.model.kv_cache import KVCache
from nanogpt_lite.model.rotary import CosSin, rotate

# On a CPU, up to such a context, plain products take less time than PyTorch's fused kernel, forward and backward: in
# bfloat16, which the kernel multiplies without the processor's instructions for it, a fifth to a half, in float32 nine
# tenths (two cores of an AMD EPYC with AVX512-BF16, torch 2.13). Their memory grows with the square of the context.
MATMUL_ATTENTION_MAX_LEN = {torch.bfloat16: 256, torch.float32: 64}


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
    if query.is_cpu and 1 < T == S <= MATMUL_ATTENTION_MAX_LEN.get(query.dtype, 0):
        return _matmul_attention(query, key, value, dropout)
    # One new token sees everything; a whole prompt is causal; several after a cache need the lower right corner.
    corner = torch.ones(T, S, dtype=torch.bool, device=query.device).tril(S - T) if 1 < T < S else None
    return F.scaled_dot_product_attention(query, key, value, corner, dropout, is_causal=1 < T == S)


def _matmul_attention(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    """The same by two products and a softmax, for S = T."""
    rows, seen, values = (part.flatten(0, 1) for part in (query, key, value))  # (B * H, T, D)
    T, D = query.shape[-2:]
    hidden = torch.full((T, T), -math.inf, dtype=query.dtype).triu(1)
    scores = torch.baddbmm(hidden, rows, seen.mT, alpha=1 / math.sqrt(D))  # (B * H, T, T)
    weights = F.dropout(scores.softmax(-1), dropout)
    return torch.bmm(weights, values).view(query.shape[:-1] + values.shape[-1:])


class CausalSelfAttention(nn.Module):
    """Each token looks at itself and at the tokens before it (GPT-2; Vaswani et al. 2017)."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.qk_norm = config.qk_norm

    def forward(self, x: Tensor, turns: CosSin | None, cache: KVCache | None, layer: int) -> Tensor:
        B, T, C = x.shape
        parts = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)  # (3, B, H, T, D)
        query_key, value = parts.split((2, 1))
        value = value.squeeze(0)
        if self.qk_norm:  # Dehghani et al. 2023, section 2; without gains
            query_key = F.layer_norm(query_key, query_key.shape[-1:])
        if turns is not None:
            query_key = rotate(query_key, turns)
        query, key = query_key.unbind()
        seen = None
        if cache is not None:
            key, value, seen = cache.append(layer, key, value)
        y = attend(query, key, value, dropout=self.dropout if self.training else 0.0, seen=seen)
        y = y.transpose(1, 2).reshape(B, T, C)
        return F.dropout(self.c_proj(y), self.dropout, self.training)
