"""The forward pass of a GPT once more, one step after the other, with all that it computes on the way.

It has the weights and the linear layers of the network and nothing else of it: no fused attention, no cache. So it is
slower, and a second opinion on `model`: its logits are the network's up to rounding. For the shape letters see
`model.gpt`; L is the number of layers, K a number of tokens.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from nanogpt_lite.model.activations import ACTIVATIONS
from nanogpt_lite.model.attention import CausalSelfAttention
from nanogpt_lite.model.block import Block
from nanogpt_lite.model.gpt import GPT
from nanogpt_lite.model.shallow_copy import copy_modules


@dataclass(frozen=True)
class ForwardPass:
    """What a network computes for tokens (T,), all in float32."""

    logits: Tensor  # (T, V) of the network alone, for the token after each
    attention: Tensor  # (L, H, T, T): how much of its attention a token (third axis) gives to each token (last axis)
    residuals: Tensor  # (L + 1, T, C): what enters the first block, and what leaves each
    ngram_share: Tensor | None  # (T,): of the input, the part of the n-gram embeddings; None without them


class TopTokens(NamedTuple):
    """The likeliest next tokens after each token, the likeliest first."""

    ids: Tensor  # (…, K)
    probabilities: Tensor  # (…, K)


@torch.no_grad()
def forward_pass(model: GPT, idx: Tensor) -> ForwardPass:
    """Compute tokens (T,) without dropout, with T at most `block_size`. The network stays as it is."""
    model = copy_modules(model).eval()  # dropout is off in the copy alone
    transformer, config = model.transformer, model.config
    (T,) = idx.shape
    assert 0 < T <= config.block_size, f"{T} tokens do not fit into a context of {config.block_size}"
    positions = torch.arange(T, device=idx.device)
    x, ngram_share = transformer.wte(idx), None  # (T, C)
    if transformer.wpe is not None:
        x = x + transformer.wpe(positions)
    if transformer.ngrams is not None:
        ngrams = transformer.ngrams(idx[None], idx.new_zeros(1, config.ngram - 1))[0]  # (T, C)
        ngram_share = _share(ngrams, x)
        x = x + ngrams
    attention, residuals = [], [x]
    for block in cast("list[Block]", list(transformer.h)):
        weights, y = _attend(model, block.attn, block.ln_1(x), positions)
        x = x + y
        x = x + block.mlp.c_proj(ACTIVATIONS[block.mlp.activation](block.mlp.c_fc(block.ln_2(x))))
        attention.append(weights)
        residuals.append(x)
    logits = model.lm_head(transformer.ln_f(x))
    return ForwardPass(logits.float(), torch.stack(attention), torch.stack(residuals).float(), ngram_share)


def _attend(model: GPT, attn: CausalSelfAttention, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """The attention weights (H, T, T) of a block in float32, and what its attention adds to the residual (T, C)."""
    T, C = x.shape
    heads = attn.c_attn(x).float().view(T, 3, attn.n_head, C // attn.n_head)  # float32 as of here
    q, k, v = heads.permute(1, 2, 0, 3)  # (H, T, D) each
    if attn.qk_norm:
        q, k = (F.layer_norm(vectors, vectors.shape[-1:]) for vectors in (q, k))
    if model.config.position == "rotary":
        q, k = (_rotate(vectors, positions, model.config.rope_theta) for vectors in (q, k))
    scores = q @ k.mT / math.sqrt(C // attn.n_head)  # (H, T, T)
    is_later = positions[None] > positions[:, None]
    weights: Tensor = scores.masked_fill(is_later, -torch.inf).softmax(-1)
    y = (weights @ v).transpose(0, 1).reshape(T, C)  # the heads side by side
    return weights, attn.c_proj(y.to(x.dtype))


def _rotate(vectors: Tensor, positions: Tensor, theta: float) -> Tensor:
    """Queries or keys (H, T, D) with channels i and i + D / 2 rotated as the two parts of a complex number."""
    pairs = vectors.size(-1) // 2
    inv_freq: Tensor = theta ** -(torch.arange(pairs, device=vectors.device) / pairs)
    angles = positions[:, None] * inv_freq  # (T, D / 2)
    rotated = torch.complex(vectors[..., :pairs], vectors[..., pairs:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([rotated.real, rotated.imag], dim=-1)


def _share(part: Tensor, rest: Tensor) -> Tensor:
    """The length of the vectors `part` (T, C) relative to the sum of the lengths of both, (T,)."""
    lengths: Tensor = part.float().norm(dim=-1)
    others: Tensor = rest.float().norm(dim=-1)
    return lengths / (lengths + others).clamp(min=torch.finfo(torch.float32).tiny)


@torch.no_grad()
def logit_lens(model: GPT, residuals: Tensor, top: int) -> TopTokens:
    """What the output layer makes of each residual (L + 1, T, C): the `top` likeliest tokens (L + 1, T, K).

    The logit lens (nostalgebraist 2020, "Interpreting GPT: the logit lens"): the final norm and the output layer,
    applied before the remaining blocks. The last one is the output of the network (without its n-gram expert).
    """
    layers = [top_tokens(probabilities, top) for probabilities in lens_probabilities(model, residuals)]
    return TopTokens(*(torch.stack(tensors) for tensors in zip(*layers, strict=True)))


def lens_probabilities(model: GPT, residuals: Tensor) -> Iterator[Tensor]:
    """The probabilities (T, V) that the output layer makes of each of the residuals (L + 1, T, C), layer by layer."""
    for residual in residuals:  # one at a time: with a large vocabulary they are large
        x = model.transformer.ln_f(residual.to(model.lm_head.weight.dtype))
        logits: Tensor = model.lm_head(x)
        yield logits.float().softmax(-1)


def top_tokens(probabilities: Tensor, top: int) -> TopTokens:
    """The `top` likeliest tokens of probabilities (…, V), or all if there are fewer."""
    values, ids = probabilities.topk(min(top, probabilities.size(-1)))
    return TopTokens(ids, values)
