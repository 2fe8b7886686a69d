"""The network against Hugging Face's GPT-2, an independent implementation, and against properties that must hold."""

import dataclasses
import math

import pytest
import torch
from random_gpt import MODERN, SMALL, VARIANTS, VOCAB, random_gpt, random_ids, random_variant
from torch.nn import functional as F

from nanogpt_lite.config.options import NetworkConfig
from nanogpt_lite.model.gpt import GPT


def as_huggingface(model):
    """Return `transformers`' GPT-2 with the same weights. Its linear layers store the transposed matrix."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = model.config
    hf_model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCAB,
            n_positions=config.block_size,
            n_embd=config.n_embd,
            n_layer=config.n_layer,
            n_head=config.n_head,
            activation_function="gelu",
            resid_pdrop=config.dropout,
            embd_pdrop=config.dropout,
            attn_pdrop=config.dropout,
            bos_token_id=0,
            eos_token_id=0,
        )
    ).eval()
    weights = {name: p.T if p.dim() == 2 and ".h." in name else p for name, p in model.named_parameters()}
    result = hf_model.load_state_dict({k: v.detach().clone() for k, v in weights.items()}, strict=False)
    assert result.missing_keys == ["lm_head.weight"]
    assert not result.unexpected_keys
    hf_model.tie_weights()
    return hf_model


@pytest.fixture(scope="module")
def model_pair():
    model = random_gpt()
    return model, as_huggingface(model)


def test_logits_and_loss_equal_huggingface(model_pair):
    model, hf_model = model_pair
    x, y = random_ids(4, 16), random_ids(4, 16, seed=2)
    logits, loss = model(x, y)
    expected = hf_model(x).logits
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss, F.cross_entropy(expected.flatten(0, 1), y.flatten()))


def test_dropout_is_applied_where_huggingface_applies_it():
    """Both sample their masks in the order of the network, so with masks of PyTorch the same seed gives the same."""
    model = random_gpt(dataclasses.replace(SMALL, dropout=0.3, fast_dropout=False))
    hf_model, x = as_huggingface(model), random_ids(4, 16)
    logits = []
    for network in (model.train(), hf_model.train()):
        torch.manual_seed(3)
        output = network(x)
        logits.append(output[0] if isinstance(output, tuple) else output.logits)
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)
    torch.manual_seed(4)
    assert not torch.allclose(model(x)[0], logits[0], atol=0.1)


def test_gradient_of_every_parameter_equals_huggingface(model_pair):
    model, hf_model = model_pair
    x, y = random_ids(4, 16), random_ids(4, 16, seed=2)
    model.zero_grad()
    hf_model.zero_grad()
    model(x, y)[1].backward()
    F.cross_entropy(hf_model(x).logits.flatten(0, 1), y.flatten()).backward()
    hf_parameters = dict(hf_model.named_parameters())
    names = [name for name, _ in model.named_parameters()]
    assert len(names) == 2 + 12 * SMALL.n_layer + 2
    for name, parameter in model.named_parameters():
        expected = hf_parameters[name].grad
        expected = expected.T if parameter.dim() == 2 and ".h." in name else expected
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-6, msg=name)


def test_greedy_text_equals_huggingface_up_to_block_size(model_pair):
    from nanogpt_lite.config.options import SampleConfig
    from nanogpt_lite.generation.generate import generate

    model, hf_model = model_pair
    prompt = random_ids(2, 3)
    generated = torch.stack(list(generate(model, prompt, SampleConfig(temperature=0.0, max_new_tokens=13))), dim=1)
    expected = hf_model.generate(
        prompt, max_new_tokens=13, do_sample=False, attention_mask=torch.ones_like(prompt), pad_token_id=0
    )
    assert torch.equal(generated, expected[:, 3:])


@pytest.mark.parametrize("bias", [True, False])
def test_parameter_names_and_shapes_equal_nanogpt(bias):
    config = NetworkConfig(block_size=8, n_layer=1, n_head=2, n_embd=4, bias=bias)
    shapes = {name: tuple(p.shape) for name, p in GPT(config, VOCAB).named_parameters()}
    block = "transformer.h.0"
    weights: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (VOCAB, 4),
        "transformer.wpe.weight": (8, 4),
        f"{block}.ln_1.weight": (4,),
        f"{block}.attn.c_attn.weight": (12, 4),
        f"{block}.attn.c_proj.weight": (4, 4),
        f"{block}.ln_2.weight": (4,),
        f"{block}.mlp.c_fc.weight": (16, 4),
        f"{block}.mlp.c_proj.weight": (4, 16),
        "transformer.ln_f.weight": (4,),
    }
    biases = {n.replace("weight", "bias"): (s[0],) for n, s in weights.items() if ".w" not in n.replace(".weight", "")}
    assert shapes == weights | (biases if bias else {})


def test_initialization_equals_gpt2():
    config = NetworkConfig(block_size=64, n_layer=4, n_head=4, n_embd=128, bias=True)
    for name, parameter in GPT(config, 65).named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif parameter.dim() == 1:
            assert (parameter == 1).all(), name
        else:
            std = 0.02 / math.sqrt(8) if name.endswith("c_proj.weight") else 0.02
            assert parameter.std().item() == pytest.approx(std, rel=0.05), name
            assert abs(parameter.mean().item()) < std / 10, name


def test_zero_init_gives_the_loss_of_a_uniform_guess():
    model = GPT(SMALL.replace({**MODERN, "zero_init": True}), VOCAB)
    x, y = random_ids(2, 9), random_ids(2, 9, seed=2)
    assert model(x, y)[1].item() == pytest.approx(math.log(VOCAB), abs=1e-6)


def test_zero_init_makes_every_block_the_identity():
    model = GPT(dataclasses.replace(SMALL, zero_init=True), VOCAB)
    x = random_ids(2, 9)
    assert model.transformer.wpe is not None
    embedded = model.transformer.wte(x) + model.transformer.wpe(torch.arange(9))
    assert torch.equal(model.transformer(x, None), model.transformer.ln_f(embedded))


def test_parameter_counts_equal_nanogpt():
    # the numbers that nanoGPT prints for these networks (10.65M and 0.80M), without the position embedding
    shakespeare = GPT(NetworkConfig(), 65)
    cpu = GPT(NetworkConfig(block_size=64, n_layer=4, n_head=4, n_embd=128, dropout=0.0), 65)
    assert f"{shakespeare.num_parameters(positions=False) / 1e6:.2f}" == "10.65"
    assert f"{cpu.num_parameters(positions=False) / 1e6:.2f}" == "0.80"
    assert shakespeare.num_parameters() - shakespeare.num_parameters(positions=False) == 256 * 384


def test_flops_per_token_equals_nanogpt():
    # nanoGPT's estimate_mfu: 6 N + 12 L H Q T
    model = GPT(NetworkConfig(), 65)
    assert model.flops_per_token() == 6 * model.num_parameters(positions=False) + 12 * 6 * 6 * 64 * 256


def test_tied_output_matrix_is_the_token_embedding():
    model = random_gpt()
    assert model.lm_head.weight is model.transformer.wte.weight


def test_untied_output_matrix_adds_parameters_but_no_flops():
    model = random_variant({"tied": False})
    assert model.num_parameters() == random_gpt().num_parameters() + VOCAB * 32
    assert model.flops_per_token() == random_gpt().flops_per_token()  # the embedding is then only a lookup


@pytest.mark.parametrize("options", VARIANTS, ids=lambda options: ",".join(options))
def test_logits_do_not_depend_on_later_tokens(options):
    model = random_variant(options)
    x = random_ids(1, 16)
    before = model(x)[0]
    for position in range(1, 16):
        changed = x.clone()
        changed[0, position] = (changed[0, position] + 1) % VOCAB
        after = model(changed)[0]
        assert torch.equal(before[0, :position], after[0, :position])
        assert not torch.equal(before[0, position], after[0, position])


@pytest.mark.parametrize("options", [{}, MODERN], ids=["nanoGPT", "modern"])
def test_logits_of_a_batch_equal_those_of_its_rows(options):
    model = random_variant(options)
    x = random_ids(5, 12)
    batch_logits = model(x)[0]
    for row in range(5):
        torch.testing.assert_close(model(x[row : row + 1])[0][0], batch_logits[row], rtol=1e-5, atol=1e-5)


def test_more_tokens_than_block_size_fail_an_assertion():
    model = random_gpt()
    with pytest.raises(AssertionError, match="context"):
        model(random_ids(1, 17))


def test_dropout_is_applied_in_training_only():
    model = random_gpt(NetworkConfig(block_size=16, n_layer=1, n_head=2, n_embd=32, dropout=0.5))
    x = random_ids(1, 8)
    assert torch.equal(model(x)[0], model(x)[0])
    model.train()
    assert not torch.equal(model(x)[0], model(x)[0])
