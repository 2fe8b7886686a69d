"""Linear layers for few rows against PyTorch's own, and drawing text with them against drawing without."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nanogpt_lite.config.options import NetworkConfig, SampleConfig
from nanogpt_lite.errors import UserError
from nanogpt_lite.generation import cpu_linear
from nanogpt_lite.generation.generate import decode_one_token, generate
from nanogpt_lite.model.gpt import GPT
from nanogpt_lite.model.kv_cache import KVCache

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")


def network(n_embd=24, bias=True, dtype=torch.float32):
    torch.manual_seed(0)
    model = GPT(NetworkConfig(block_size=8, n_layer=2, n_head=2, n_embd=n_embd, bias=bias), 11).to(dtype).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def kinds(model):
    return {type(module) for module in model.transformer.modules() if "Linear" in type(module).__name__}


sizes = st.integers(1, 100)


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, st.integers(1, 40), st.booleans())
def test_a_blocked_layer_is_a_linear_layer(c_in, c_out, rows, bias):
    torch.manual_seed(0)
    linear, x = nn.Linear(c_in, c_out, bias=bias), torch.randn(2, rows, c_in)
    with torch.inference_mode():
        torch.testing.assert_close(cpu_linear.BlockedLinear(linear)(x), linear(x), rtol=1e-5, atol=1e-5)


@needs_onednn
@settings(max_examples=60, deadline=None)
@given(sizes, sizes, st.integers(1, 40), st.integers(1, 40), st.booleans())
def test_a_packed_layer_is_a_linear_layer_for_any_number_of_rows(c_in, c_out, expected, rows, bias):
    torch.manual_seed(0)
    linear, x = nn.Linear(c_in, c_out, bias=bias), torch.randn(2, rows, c_in)
    with torch.inference_mode():
        torch.testing.assert_close(cpu_linear.PackedLinear(linear, expected)(x), linear(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n_embd", [24, 96])  # neither and both multiples of a block's columns
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("rows", "kind"), [(1, cpu_linear.BlockedLinear), pytest.param(3, cpu_linear.PackedLinear, marks=needs_onednn)]
)
def test_text_is_the_same_past_block_size(n_embd, bias, rows, kind):
    model = network(n_embd, bias)
    prompt = torch.randint(11, (rows, 3), generator=torch.Generator().manual_seed(1))

    def draw():
        return torch.stack(list(generate(model, prompt, SampleConfig(max_new_tokens=40))))

    plain = draw()
    cpu_linear.optimize_linears(model, rows)
    assert kinds(model) == {kind}
    assert torch.equal(draw(), plain)


def test_without_onednn_several_rows_take_blocks(monkeypatch):
    model = network()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    cpu_linear.optimize_linears(model, 3)
    assert kinds(model) == {cpu_linear.BlockedLinear}


def test_other_formats_and_bfloat16_without_onednn_are_left_alone(monkeypatch):
    half = network(dtype=torch.float16)
    cpu_linear.optimize_linears(half, 1)
    assert kinds(half) == {nn.Linear}
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    model = network(dtype=torch.bfloat16)
    cpu_linear.optimize_linears(model, 1)
    assert kinds(model) == {nn.Linear}


@needs_onednn
@pytest.mark.parametrize("rows", [1, 3])
def test_in_bfloat16_the_layers_are_packed_and_the_logits_near(rows):
    model = network(96, dtype=torch.bfloat16)
    plain, x = network(96), torch.randint(11, (rows, 8))
    with torch.inference_mode():
        expected = plain(x)[0]
        cpu_linear.optimize_linears(model, rows)
        cache = KVCache(model, rows)
        logits = torch.cat([model(part, cache=cache)[0] for part in x.split([5, 1, 1, 1], dim=1)], dim=1)
    assert kinds(model) == {cpu_linear.PackedLinear}
    assert (logits.float() - expected).norm() < 0.03 * expected.norm()


@needs_onednn
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_with_cache_are_near_those_without_in_every_format(dtype, int8):
    model = network(96, dtype=dtype)
    if int8:
        cpu_linear.quantize_int8(model)
    cpu_linear.optimize_linears(model, 3)
    x = torch.randint(11, (3, 8), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        whole, cache = model(x)[0].float(), KVCache(model, 3)
        pieces = torch.cat([model(part, cache=cache)[0].float() for part in x.split([3, 1, 2, 1, 1], dim=1)], dim=1)
    limit = 0.03 if dtype == torch.bfloat16 or int8 else 1e-5
    assert (pieces - whole).norm() < limit * whole.norm()


@pytest.mark.parametrize(("dtype", "enabled"), [(torch.float32, False), (torch.bfloat16, True)])
def test_onednn_computes_single_tokens_in_bfloat16_only(dtype, enabled):
    model, seen = network(dtype=dtype), []
    model.lm_head.register_forward_hook(lambda *_: seen.append(torch.backends.mkldnn.enabled))
    with torch.inference_mode():
        decode_one_token(model, torch.zeros(1, 1, dtype=torch.int64), KVCache(model, 1))
    assert seen == [enabled]


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, st.integers(1, 40), st.booleans())
def test_a_layer_in_8_bits_is_near_the_linear_layer(c_in, c_out, rows, bias):
    torch.manual_seed(0)
    linear, x = nn.Linear(c_in, c_out, bias=bias), torch.randn(2, rows, c_in)
    with torch.inference_mode():
        linear.weight[0] = 0
        got, expected, product = cpu_linear.Int8Linear(linear)(x), linear(x), x @ linear.weight.T
    assert got.shape == expected.shape
    # half a step of each number, the rounding of what is multiplied, and that of the product, before the bias is added
    step = linear.weight.abs().amax(1) / 127 / 2 + linear.weight.abs().amax(1) * 2**-8
    assert ((got - expected).abs() <= step * x.abs().sum(-1, keepdim=True) + 2**-8 * product.abs() + 1e-6).all()


def test_8_bits_are_for_a_cpu():
    model = network().to("meta")
    with pytest.raises(UserError, match=r"int8=True is for a CPU.*--int8=False"):
        cpu_linear.quantize_int8(model)
    model = network()
    cpu_linear.quantize_int8(model)
    cpu_linear.optimize_linears(model, 1)
    assert kinds(model) == {cpu_linear.Int8Linear}
