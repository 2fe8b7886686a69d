"""Filters against brute force, sampled tokens against probabilities, random numbers against Philox."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_lite.config.options import SampleConfig
from nanogpt_lite.generation import sampling


def brute_force_kept(logits, top_k, top_p, min_p):
    """Return which tokens of one row may be sampled: one filter after the other, in plain Python and float64."""
    kept = list(range(len(logits)))

    def probabilities():
        weights = {i: np.exp(np.float64(logits[i])) for i in kept}
        return {i: weight / sum(weights.values()) for i, weight in weights.items()}

    if top_k:
        smallest = sorted((logits[i] for i in kept), reverse=True)[:top_k][-1]
        kept = [i for i in kept if logits[i] >= smallest]
    if top_p < 1:
        p, total, nucleus = probabilities(), 0.0, []
        for i in sorted(kept, key=lambda i: -logits[i]):
            nucleus.append(i)
            total += p[i]
            if total >= top_p:
                break
        kept = nucleus
    if min_p:
        p = probabilities()
        kept = [i for i in kept if p[i] >= min_p * max(p.values())]
    return set(kept)


# multiples of 1/8, so that no sum of probabilities lies within rounding of a limit
logit_rows = st.lists(st.integers(-40, 40), min_size=2, max_size=9, unique=True).map(lambda row: [x / 8 for x in row])


@settings(max_examples=200, deadline=None)
@given(
    logit_rows, st.integers(0, 9), st.sampled_from([0.0, 0.313, 0.777, 0.951, 1.0]), st.sampled_from([0, 0.11, 0.53])
)
def test_filters_equal_brute_force(row, top_k, top_p, min_p):
    config = SampleConfig(top_k=top_k, top_p=top_p, min_p=min_p)
    filtered = sampling.filter_logits(torch.tensor([row, row[::-1]]), config)
    for filtered_row, logits in zip(filtered, (row, row[::-1]), strict=True):
        kept = {i for i, value in enumerate(filtered_row.tolist()) if value != -np.inf}
        assert kept == brute_force_kept(logits, top_k, top_p, min_p)
        assert all(filtered_row[i].item() == pytest.approx(logits[i]) for i in kept)


def test_filters_at_exactly_their_limits():
    """Two tokens of probability 1/2 each: the first alone reaches top_p, and both are as likely as the likeliest."""
    halves = torch.zeros(1, 2)
    assert sampling.filter_logits(halves, SampleConfig(top_p=0.5)).isfinite().tolist() == [[True, False]]
    assert sampling.filter_logits(halves, SampleConfig(min_p=1.0)).isfinite().tolist() == [[True, True]]


def test_top_k_keeps_ties_as_nanogpt_does():
    filtered = sampling.filter_logits(torch.tensor([[1.0, 2.0, 2.0, 0.0]]), SampleConfig(top_k=1))
    assert filtered.isfinite().tolist() == [[False, True, True, False]]


def test_sampled_tokens_follow_the_probabilities():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    config = SampleConfig(temperature=0.7, top_k=3)
    count = 20_000
    uniforms = torch.rand(count, generator=torch.Generator().manual_seed(0))
    tokens = sampling.sample_token(logits.expand(count, -1), uniforms, config)
    expected = torch.softmax(logits[:3] / 0.7, 0)
    frequencies = torch.bincount(tokens, minlength=4) / count
    assert frequencies[3] == 0
    sigma = (expected * (1 - expected) / count).sqrt()
    assert ((frequencies[:3] - expected).abs() < 4 * sigma).all()


@pytest.mark.parametrize("temperature", [1e-320, 1e-45, 1e-40, 1e-30, 1e-20, 1e-10])
def test_tiny_temperature_selects_the_likeliest_token(temperature):
    """Found by fuzzing: the logits became infinite, and all probabilities nan, so that token 0 was selected."""
    logits = torch.tensor([[-3.0, 90.0, 7.0], [-5.0, -4.0, -7.0]])
    for options in ({}, {"top_k": 2, "top_p": 0.9, "min_p": 0.1}):
        config = SampleConfig.from_dict({"temperature": temperature, **options})
        assert sampling.sample_token(logits, torch.tensor([0.0, 0.999]), config).tolist() == [1, 1]


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_smallest_and_largest_uniform_select_a_token_with_probability_above_zero(uniform):
    logits = torch.randn(64, 11, generator=torch.Generator().manual_seed(1)) * 20
    logits[:, [0, -1]] = -torch.inf
    tokens = sampling.sample_token(logits, torch.full((64,), uniform), SampleConfig(temperature=1.0, top_k=0))
    assert logits.gather(1, tokens[:, None]).isfinite().all()


def test_uniforms_are_one_philox_sequence_per_row():
    chunks = [sampling.make_uniforms(9, 3, start, device=torch.device("cpu")) for start in (0, sampling.RNG_CHUNK)]
    sequences = torch.cat(chunks, dim=1)
    for row in range(3):
        bits = np.random.Philox(key=[9, row]).random_raw(2 * sampling.RNG_CHUNK)
        np.testing.assert_allclose(sequences[row], bits / 2**64, atol=2**-24)
    assert sequences.min() >= 0
    assert sequences.max() < 1
