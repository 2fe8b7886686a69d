"""The token loop: the context policy with and without a cache, and what a row's random numbers depend on."""

import itertools

import numpy as np
import pytest
import torch
from random_gpt import random_gpt, random_ids

from nanogpt_lite.config.options import NetworkConfig, SampleConfig
from nanogpt_lite.generation import decoding
from nanogpt_lite.generation.generate import generate, generate_with_logits

VOCAB = 11


def make_model(block_size=12):
    config = NetworkConfig(block_size=block_size, n_layer=2, n_head=2, n_embd=16, dropout=0.3)
    return random_gpt(config, VOCAB, std=0.5).train()  # `generate` has to switch dropout off


def make_prompts(rows, length):
    return random_ids(rows, length, vocab_size=VOCAB, seed=5)


def generate_ids(model, prompt, use_cache=True, **options):
    options = {"max_new_tokens": 40, "seed": 3, **options}
    return torch.stack(list(generate(model, prompt, SampleConfig(**options), use_cache=use_cache)), dim=1)


def test_each_token_uses_the_next_random_number_of_its_row(monkeypatch):
    used = []

    def record_uniforms(logits, uniforms, config):
        used.append(uniforms)
        return logits.argmax(dim=-1)

    monkeypatch.setattr(decoding, "sample_token", record_uniforms)
    generate_ids(make_model(), make_prompts(2, 3), max_new_tokens=600, seed=9)
    for row in range(2):
        bits = np.random.Philox(key=[9, row]).random_raw(600)
        np.testing.assert_allclose(torch.stack(used)[:, row], bits / 2**64, atol=2**-24)


@pytest.mark.parametrize("block_size", [1, 2, 5, 12])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_text_with_cache_equals_text_without_past_block_size(block_size, temperature):
    model = make_model(block_size)
    prompt = make_prompts(3, 4)
    with_cache = generate_ids(model, prompt, temperature=temperature)
    assert with_cache.shape == (3, 40)
    assert torch.equal(with_cache, generate_ids(model, prompt, use_cache=False, temperature=temperature))


def test_context_past_block_size_is_cut_to_its_last_half():
    """Greedy text against the policy written out: a full context is cut to its last half before it grows again."""
    model, block_size = make_model().eval(), 12
    prompt = make_prompts(1, 4)
    context, expected = prompt[0].tolist(), []
    for _ in range(40):
        if len(context) > block_size:
            context = context[-(block_size // 2) :]
        expected.append(model(torch.tensor([context]))[0][0, -1].argmax().item())
        context.append(expected[-1])
    assert generate_ids(model, prompt, temperature=0.0)[0].tolist() == expected


def test_only_the_last_block_size_tokens_of_a_prompt_are_used():
    model = make_model()
    prompt = make_prompts(2, 30)
    assert torch.equal(generate_ids(model, prompt), generate_ids(model, prompt[:, -12:]))


def test_greedy_text_of_a_batch_equals_that_of_its_rows():
    model = make_model()
    prompt = make_prompts(4, 6)
    batch = generate_ids(model, prompt, temperature=0.0)
    for row in range(4):
        assert torch.equal(generate_ids(model, prompt[row : row + 1], temperature=0.0)[0], batch[row])


def test_sampled_row_does_not_depend_on_the_number_of_rows():
    model = make_model()
    prompt = make_prompts(1, 6)
    seven_rows = generate_ids(model, prompt.expand(7, -1), temperature=1.0)
    two_rows = generate_ids(model, prompt.expand(2, -1), temperature=1.0)
    assert torch.equal(two_rows, seven_rows[:2])
    assert len({tuple(row) for row in seven_rows.tolist()}) == 7
    assert not torch.equal(two_rows, generate_ids(model, prompt.expand(2, -1), temperature=1.0, seed=4))


def test_generation_uses_no_dropout_and_leaves_the_global_random_state_unchanged():
    model = make_model()
    before = torch.get_rng_state()
    assert torch.equal(generate_ids(model, make_prompts(1, 6)), generate_ids(model, make_prompts(1, 6)))
    assert torch.equal(torch.get_rng_state(), before)


def test_tokens_are_yielded_as_they_are_generated():
    tokens = generate(make_model(), make_prompts(1, 3), SampleConfig(max_new_tokens=10**9))
    assert len(list(itertools.islice(tokens, 600))) == 600


def test_logits_are_those_that_each_token_was_chosen_from():
    """Also after a cut of the context, computed without a cache; they are before temperature and filters."""
    model, prompt = make_model(), make_prompts(2, 3)
    config = SampleConfig(max_new_tokens=30, seed=3, temperature=0.5, top_k=3)
    expected = torch.stack(list(generate(model, prompt, config)), dim=1)
    tokens, logits = zip(*generate_with_logits(model, prompt, config), strict=True)
    assert torch.equal(torch.stack(tokens, dim=1), expected)
    context = prompt
    for step in range(30):
        if context.size(1) > 12:
            context = context[:, -6:]
        with torch.inference_mode():
            torch.testing.assert_close(logits[step], model(context)[0][:, -1], atol=1e-5, rtol=1e-4)
        context = torch.cat([context, expected[:, step : step + 1]], dim=1)
