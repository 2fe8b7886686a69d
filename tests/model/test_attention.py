"""Attention against equation 1 of Vaswani et al. 2017, written out."""

import math

import pytest
import torch
from random_gpt import random_ids, random_variant
from torch.nn import functional as F

from nanogpt_lite.model import attention
from nanogpt_lite.model.attention import causal_attention


def random_qkv(batch, q_len, k_len):
    torch.manual_seed(batch)
    return [torch.randn(batch, 3, length, 8, requires_grad=True) for length in (q_len, k_len, k_len)]


def reference_attention(q, k, v):
    T, S = q.size(2), k.size(2)
    scores = q @ k.mT / math.sqrt(8)
    is_later = torch.arange(S) > torch.arange(S - T, S)[:, None]
    return scores.masked_fill(is_later, -math.inf).softmax(-1) @ v


@pytest.mark.parametrize(("q_len", "k_len"), [(1, 1), (1, 9), (9, 9), (4, 9), (64, 64), (65, 65)])
def test_outputs_and_gradients_equal_the_definition(q_len, k_len):
    assert attention.MATMUL_ATTENTION_MAX_LEN[torch.float32] == 64
    qkv = random_qkv(2, q_len, k_len)
    actual, expected = causal_attention(*qkv), reference_attention(*qkv)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    weight = torch.randn_like(actual)
    gradients = [torch.autograd.grad((y * weight).sum(), qkv) for y in (actual, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [256, 257])
def test_bfloat16_is_close_to_the_definition(length):
    qkv = [x.detach().bfloat16() for x in random_qkv(2, length, length)]
    expected = reference_attention(*(x.double() for x in qkv))
    assert (causal_attention(*qkv).double() - expected).abs().max() < 0.02


@pytest.mark.parametrize("length", [32, 100])
@pytest.mark.parametrize("fast_masks", [True, False])
def test_dropout_zeroes_attention_weights_and_scales_the_others(length, fast_masks):
    q, k, _ = random_qkv(4, length, length)
    v = torch.eye(length).expand(4, 3, length, length)  # the outputs are then the attention weights themselves
    weights = causal_attention(q, k, v)
    torch.manual_seed(7)
    ratios = (causal_attention(q, k, v, dropout=0.25, fast_masks=fast_masks) / weights)[weights > 0]
    assert set(ratios.mul(3).round(decimals=3).tolist()) == {0.0, 4.0}
    assert (ratios == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("fast_masks", [True, False])
def test_outputs_and_gradients_with_dropout_equal_the_definition(fast_masks):
    q, k, v = random_qkv(2, 100, 100)
    identity = torch.eye(100).expand(2, 3, 100, 100)  # as values, it makes the outputs the attention weights
    outputs = []
    for values in (v, identity):
        torch.manual_seed(7)
        outputs.append(causal_attention(q, k, values, dropout=0.25, fast_masks=fast_masks))
    actual, weights = outputs
    kept = (weights.detach() != 0) / 0.75
    expected = (reference_attention(q, k, identity) * kept) @ v
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    weight = torch.randn_like(actual)
    gradients = [torch.autograd.grad((y * weight).sum(), (q, k, v)) for y in (actual, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)


def test_fast_masks_are_drawn_at_any_length_on_a_cpu(monkeypatch):
    qkv = random_qkv(2, 100, 100)
    calls = []
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *args, **named: calls.append(args) or fused(*args, **named)
    )
    for dropout, fast_masks, is_fused in ((0.25, True, False), (0.25, False, True), (0.0, True, True)):
        calls.clear()
        causal_attention(*qkv, dropout=dropout, fast_masks=fast_masks)
        assert bool(calls) == is_fused


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_qk_norm_makes_logits_independent_of_the_scale_of_q_and_k(norm):
    model = random_variant({"qk_norm": True, "bias": False, "norm": norm})
    x = random_ids(2, 9)
    before = model(x)[0]
    with torch.no_grad():
        for block in model.transformer.h:
            block.attn.c_attn.weight[:64] *= 3  # the rows of q and k
    torch.testing.assert_close(model(x)[0], before, atol=1e-4, rtol=1e-4)
