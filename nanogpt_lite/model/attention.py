"""Causal self-attention with several heads (Vaswani et al. 2017; GPT-2).

For rotary position embeddings see `rotary`, for the cache of keys and values `kv_cache`, for the shape letters `gpt`.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanogpt_lite.config.options import NetworkConfig
from nanogpt_lite.model.dropout import dropout
from nanogpt_lite.model.kv_cache import KVCache
from nanogpt_lite.model.rotary import CosSin, apply_rotary

# On a CPU, for sequences up to this length, attention as two matrix products is faster than PyTorch's fused kernel.
# Forward and backward together take 0.2 to 0.5 of the kernel's time in bfloat16 (the kernel does not use the
# processor's bfloat16 instructions) and 0.9 in float32. Measured on two cores of an AMD EPYC with AVX512-BF16, torch
# 2.13. Memory grows with the square of the length.
# With dropout, the kernel is not fused on a CPU and takes as much memory: it is slower at any length. Two products with
# fast masks take 0.4 to 0.75 of its time, at lengths from 128 to 2048 in float32 (AMD EPYC with AVX2).
MATMUL_ATTENTION_MAX_LEN = {torch.bfloat16: 256, torch.float32: 64}


class CausalSelfAttention(nn.Module):
    """Each token attends to itself and to the tokens before it: x (B, T, C) in, (B, T, C) out."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.n_head = config.n_head
        self.dropout, self.fast_dropout = config.dropout, config.fast_dropout
        self.qk_norm = config.qk_norm

    def forward(self, x: Tensor, cos_sin: CosSin | None, cache: KVCache | None, layer: int) -> Tensor:
        B, T, C = x.shape
        qkv = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)  # (3, B, H, T, D)
        if self.qk_norm or cos_sin is not None:
            qk, v = qkv.split((2, 1))  # q and k stay in one tensor: the norm and the rotation are the same for both
            v = v.squeeze(0)  # (B, H, T, D)
            if self.qk_norm:  # Dehghani et al. 2023, section 2, but without a learnable scale
                with torch.autocast(qk.device.type, enabled=False):  # on CUDA, autocast would compute it in float32
                    qk = F.layer_norm(qk, qk.shape[-1:])
            if cos_sin is not None:
                qk = apply_rotary(qk, cos_sin)
            q, k = qk.unbind()  # (B, H, T, D) each
        else:
            q, k, v = qkv.unbind()  # (B, H, T, D) each
        attn_mask = None
        if cache is not None:
            k, v, attn_mask = cache.append(layer, k, v)  # k and v are now (B, H, S, D)
        p = self.dropout if self.training else 0.0
        y = causal_attention(q, k, v, dropout=p, fast_masks=self.fast_dropout, attn_mask=attn_mask)
        y = y.transpose(1, 2).reshape(B, T, C)  # the heads side by side
        return dropout(self.c_proj(y), p, fast=self.fast_dropout)


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    dropout: float = 0.0,
    fast_masks: bool = True,
    attn_mask: Tensor | None = None,
) -> Tensor:
    """Return softmax(q k^T / sqrt(D)) v under a causal mask, (B, H, T, D).

    `q` is (B, H, T, D), `k` and `v` are (B, H, S, D) with S >= T. The queries belong to the last T of the S tokens,
    unless `attn_mask` (T, S) says which keys each query attends to (True: attend; or numbers that are added to the
    scores). `dropout` is the probability of setting an attention weight to zero; for `fast_masks` see `dropout`.
    """
    if k.dtype != q.dtype:  # a cache may have another dtype than the weights, see `KVCache`
        y = causal_attention(q.to(k.dtype), k, v, dropout=dropout, fast_masks=fast_masks, attn_mask=attn_mask)
        return y.to(q.dtype)
    if attn_mask is not None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask, dropout)
    T, S = q.size(-2), k.size(-2)
    is_short = MATMUL_ATTENTION_MAX_LEN.get(q.dtype, 0) >= T
    if q.is_cpu and 1 < T == S and (is_short or (dropout and fast_masks)):
        return _matmul_attention(q, k, v, dropout, fast_masks=fast_masks)
    # Three cases. T = 1: the new token attends to all keys, no mask. T = S: `is_causal`. Between them (several new
    # tokens after cached ones): a mask aligned to the lower right corner; `is_causal` aligns to the upper left one.
    causal_mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T) if 1 < T < S else None
    return F.scaled_dot_product_attention(q, k, v, causal_mask, dropout, is_causal=1 < T == S)


def _matmul_attention(q: Tensor, k: Tensor, v: Tensor, p: float, *, fast_masks: bool) -> Tensor:
    """Return the same as two matrix products and a softmax, for S = T."""
    B, H, T, D = q.shape
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))  # (B * H, T, D)
    causal_mask = torch.full((T, T), -math.inf, dtype=q.dtype).triu(1)
    scores = torch.baddbmm(causal_mask, q, k.mT, alpha=1 / math.sqrt(D))  # (B * H, T, T)
    weights = dropout(scores.softmax(-1), p, fast=fast_masks)
    return torch.bmm(weights, v).view(B, H, T, -1)
