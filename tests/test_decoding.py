"""Blocked linear layers against PyTorch's own, and drawing text with them against drawing without."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nanogpt_lite import decoding, sampling
from nanogpt_lite.config import NetworkConfig, SampleConfig
from nanogpt_lite.model import GPT


def network(n_embd=24, bias=True, dtype=torch.float32):
    torch.manual_seed(0)
    model = GPT(NetworkConfig(block_size=8, n_layer=2, n_head=2, n_embd=n_embd, bias=bias), 11).to(dtype).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 100), st.integers(1, 100), st.integers(1, 40), st.booleans())
def test_a_blocked_layer_is_a_linear_layer(c_in, c_out, rows, bias):
    linear = nn.Linear(c_in, c_out, bias=bias)
    x = torch.randn(2, rows, c_in)
    with torch.inference_mode():
        torch.testing.assert_close(decoding.BlockedLinear(linear)(x), linear(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n_embd", [24, 96])  # neither and both multiples of a block's columns
@pytest.mark.parametrize("bias", [True, False])
def test_text_is_the_same_past_block_size(n_embd, bias):
    model = network(n_embd, bias)
    prompt = torch.tensor([[1, 2, 3], [4, 5, 6]])

    def draw():
        return torch.stack(list(sampling.generate(model, prompt, SampleConfig(max_new_tokens=40))))

    plain = draw()
    linear = [module for module in model.modules() if type(module) is nn.Linear]
    decoding.prepare_for_decoding(model)
    assert len(linear) == 2 * 4 + 1
    assert [module for module in model.modules() if type(module) is nn.Linear] == [model.lm_head]
    assert torch.equal(draw(), plain)


def test_lower_precision_is_left_alone():
    model = network(dtype=torch.bfloat16)
    decoding.prepare_for_decoding(model)
    assert not any(isinstance(module, decoding.BlockedLinear) for module in model.modules())
