"""Linear layers for inputs of a few rows against `nn.Linear`, and text generated with them against text without."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nanogpt_lite.config.options import NetworkConfig, SampleConfig
from nanogpt_lite.errors import UserError
from nanogpt_lite.generation import cpu_linear
from nanogpt_lite.generation.decoding import decode_one_token
from nanogpt_lite.generation.generate import generate
from nanogpt_lite.model.gpt import GPT
from nanogpt_lite.model.kv_cache import KVCache

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")


def make_model(n_embd=24, bias=True, dtype=torch.float32):
    torch.manual_seed(0)
    model = GPT(NetworkConfig(block_size=8, n_layer=2, n_head=2, n_embd=n_embd, bias=bias), 11).to(dtype).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def linear_types(model):
    return {type(module) for module in model.transformer.modules() if "Linear" in type(module).__name__}


sizes = st.integers(1, 100)


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, st.integers(1, 40), st.booleans())
def test_blocked_linear_equals_linear(c_in, c_out, rows, bias):
    torch.manual_seed(0)
    linear, x = nn.Linear(c_in, c_out, bias=bias), torch.randn(2, rows, c_in)
    with torch.inference_mode():
        torch.testing.assert_close(cpu_linear.BlockedLinear(linear)(x), linear(x), rtol=1e-5, atol=1e-5)


@needs_onednn
@settings(max_examples=60, deadline=None)
@given(sizes, sizes, st.integers(1, 40), st.integers(1, 40), st.booleans())
def test_packed_linear_equals_linear_for_any_number_of_rows(c_in, c_out, batch_size, rows, bias):
    torch.manual_seed(0)
    linear, x = nn.Linear(c_in, c_out, bias=bias), torch.randn(2, rows, c_in)
    with torch.inference_mode():
        torch.testing.assert_close(cpu_linear.PackedLinear(linear, batch_size)(x), linear(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n_embd", [24, 96])  # no layer, and every layer, has a multiple of BLOCK_COLUMNS outputs
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("batch_size", "expected_type"),
    [(1, cpu_linear.BlockedLinear), pytest.param(3, cpu_linear.PackedLinear, marks=needs_onednn)],
)
def test_text_with_optimized_linears_equals_text_with_linear_past_block_size(n_embd, bias, batch_size, expected_type):
    model = make_model(n_embd, bias)
    prompt = torch.randint(11, (batch_size, 3), generator=torch.Generator().manual_seed(1))

    def generate_ids():
        return torch.stack(list(generate(model, prompt, SampleConfig(max_new_tokens=40))))

    expected = generate_ids()
    cpu_linear.optimize_linears(model, batch_size)
    assert linear_types(model) == {expected_type}
    assert torch.equal(generate_ids(), expected)


def test_blocked_linear_is_used_for_several_rows_without_onednn(monkeypatch):
    model = make_model()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    cpu_linear.optimize_linears(model, 3)
    assert linear_types(model) == {cpu_linear.BlockedLinear}


def test_float16_and_bfloat16_without_onednn_keep_linear(monkeypatch):
    half = make_model(dtype=torch.float16)
    cpu_linear.optimize_linears(half, 1)
    assert linear_types(half) == {nn.Linear}
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    model = make_model(dtype=torch.bfloat16)
    cpu_linear.optimize_linears(model, 1)
    assert linear_types(model) == {nn.Linear}


@pytest.mark.parametrize("batch_size", [1, 3])
def test_bfloat16_keeps_linear_on_a_cpu_for_which_onednn_does_not_have_it(batch_size, monkeypatch):
    def refuse(*_):
        raise RuntimeError("mkldnn_reorder_linear_weight: bf16 path needs the cpu support avx_ne_convert or avx512bw")

    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", refuse)
    model = make_model(dtype=torch.bfloat16)
    cpu_linear.optimize_linears(model, batch_size)
    assert linear_types(model) == {nn.Linear}


@needs_onednn
@pytest.mark.skipif(not cpu_linear.has_onednn_bfloat16(), reason="needs a CPU on which oneDNN has bfloat16: AVX-512")
@pytest.mark.parametrize("batch_size", [1, 3])
def test_bfloat16_uses_packed_linear_and_its_logits_are_close_to_float32(batch_size):
    model = make_model(96, dtype=torch.bfloat16)
    float32_model, x = make_model(96), torch.randint(11, (batch_size, 8))
    with torch.inference_mode():
        expected = float32_model(x)[0]
        cpu_linear.optimize_linears(model, batch_size)
        cache = KVCache(model, batch_size)
        logits = torch.cat([model(part, cache=cache)[0] for part in x.split([5, 1, 1, 1], dim=1)], dim=1)
    assert linear_types(model) == {cpu_linear.PackedLinear}
    assert (logits.float() - expected).norm() < 0.03 * expected.norm()


@needs_onednn
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_with_cache_are_close_to_those_without_in_every_dtype(dtype, int8):
    model = make_model(96, dtype=dtype)
    if int8:
        cpu_linear.quantize_int8(model)
    cpu_linear.optimize_linears(model, 3)
    x = torch.randint(11, (3, 8), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected, cache = model(x)[0].float(), KVCache(model, 3)
        logits = torch.cat([model(part, cache=cache)[0].float() for part in x.split([3, 1, 2, 1, 1], dim=1)], dim=1)
    tolerance = 0.03 if dtype == torch.bfloat16 or int8 else 1e-5
    assert (logits - expected).norm() < tolerance * expected.norm()


@pytest.mark.parametrize(("dtype", "is_enabled"), [(torch.float32, False), (torch.bfloat16, True)])
def test_decode_one_token_uses_onednn_in_bfloat16_only(dtype, is_enabled):
    model = make_model(dtype=dtype)
    enabled: list[bool] = []
    model.lm_head.register_forward_hook(lambda *_: enabled.append(bool(torch.backends.mkldnn.enabled)))
    with torch.inference_mode():
        decode_one_token(model, torch.zeros(1, 1, dtype=torch.int64), KVCache(model, 1))
    assert enabled == [is_enabled]


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, st.integers(1, 40), st.booleans())
def test_int8_linear_is_close_to_linear(c_in, c_out, rows, bias):
    torch.manual_seed(0)
    linear, x = nn.Linear(c_in, c_out, bias=bias), torch.randn(2, rows, c_in)
    with torch.inference_mode():
        linear.weight[0] = 0
        actual, expected, product = cpu_linear.Int8Linear(linear)(x), linear(x), x @ linear.weight.T
    assert actual.shape == expected.shape
    # the rounding of a weight (half a step) and of the input, then that of the product before the bias is added
    weight_error = linear.weight.abs().amax(1) / 127 / 2 + linear.weight.abs().amax(1) * 2**-8
    assert (
        (actual - expected).abs() <= weight_error * x.abs().sum(-1, keepdim=True) + 2**-8 * product.abs() + 1e-6
    ).all()


def test_quantize_int8_needs_a_cpu_and_is_kept_by_optimize_linears():
    model = make_model().to("meta")
    with pytest.raises(UserError, match=r"`int8=True` needs a CPU.*`int8=False`"):
        cpu_linear.quantize_int8(model)
    model = make_model()
    cpu_linear.quantize_int8(model)
    cpu_linear.optimize_linears(model, 1)
    assert linear_types(model) == {cpu_linear.Int8Linear}


def test_copy_for_generation_shares_all_tensors_but_the_replaced_weights():
    model = make_model(96)
    copied = cpu_linear.copy_for_generation(model, 1, max_new_tokens=cpu_linear.MIN_TOKENS)
    assert linear_types(copied) == {cpu_linear.BlockedLinear}
    assert linear_types(model) == {nn.Linear}
    of_model = {id(parameter) for parameter in model.parameters()}
    assert {id(parameter) for parameter in copied.parameters()} <= of_model
    name = "transformer.h.0.mlp.c_fc.bias"
    assert copied.get_parameter(name) is model.get_parameter(name)


def test_few_tokens_are_generated_with_linear_since_packing_takes_longer():
    model = make_model()
    assert linear_types(cpu_linear.copy_for_generation(model, 1, cpu_linear.MIN_TOKENS - 1)) == {nn.Linear}
