"""What a network expects after each token: against its own losses, against sampling, and past the context."""

import math

import pytest
import torch
from random_gpt import EXPERT, MODERN, VARIANTS, VOCAB, random_ids, random_variant
from torch.nn import functional as F

from nanogpt_lite.config.options import InspectConfig, SampleConfig
from nanogpt_lite.generation.generate import generate
from nanogpt_lite.generation.sampling import sample_token
from nanogpt_lite.ngrams.ngram_counts import count_ngrams
from nanogpt_lite.readout.expectations import FILTERS, STAGES, filter_stages, read_windows, windows

BLOCK_SIZE = 16  # of the variants
FILTERED = InspectConfig(temperature=0.7, top_k=9, top_p=0.8, min_p=0.05)


def expectations(model, idx, config=FILTERED, top=5):
    return [expected for _, expected in read_windows(model, idx, config, top, attention=False, lens=False)]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_surprise_is_the_loss_of_each_token(options):
    model, idx = random_variant(options), random_ids(1, BLOCK_SIZE + 1)[0]
    surprise = torch.cat([expected.surprise for expected in expectations(model, idx)])
    assert math.isnan(surprise[-1])
    with torch.inference_mode():
        logits = model(idx[None, :-1])[0][0]  # log-probabilities, if there is an expert
        total = model(idx[None, :-1], idx[None, 1:])[1] * BLOCK_SIZE
    torch.testing.assert_close(surprise[:-1], F.cross_entropy(logits, idx[1:], reduction="none"))
    torch.testing.assert_close(surprise[:-1].sum(), total)


@pytest.mark.parametrize(
    "options", [{}, MODERN, EXPERT, {"block_size": 1}, {"block_size": 2}, {"block_size": 5}], ids=str
)
@pytest.mark.parametrize("prompt_length", [1, 2])
def test_a_greedy_text_past_the_context_has_no_likelier_token(options, prompt_length):
    """Each of its tokens was the likeliest one in its context, so it must be in the windows too."""
    model, prompt = random_variant(options), random_ids(1, min(prompt_length, options.get("block_size", 16)))
    greedy = SampleConfig(temperature=0.0, max_new_tokens=5 * BLOCK_SIZE)
    idx = torch.cat([prompt[0], *generate(model, prompt, greedy)])
    ranks = torch.cat([expected.rank for expected in expectations(model, idx)])
    assert ranks.tolist()[len(prompt[0]) - 1 :] == [0] * greedy.max_new_tokens + [-1]


@pytest.mark.parametrize("block_size", [1, 2, 3, 8, 9])
@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 40])
def test_windows_cover_each_position_once_and_are_never_longer_than_the_context(block_size, length):
    covered = []
    for start, end, first_read in windows(length, block_size):
        assert 0 <= start <= first_read < end <= length
        assert end - start <= block_size
        covered += range(first_read, end)
    assert covered == list(range(length))


def test_the_last_stage_has_the_probabilities_that_are_sampled_from():
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(0)) * 2
    final = dict(filter_stages(logits, FILTERED))["min_p"][0]
    n = 20_000
    uniforms = (torch.arange(n) + 0.5) / n
    drawn = sample_token(logits.expand(n, -1), uniforms, FILTERED)
    torch.testing.assert_close(drawn.bincount(minlength=VOCAB) / n, final, atol=2 / n, rtol=0)
    assert 1 < (final > 0).sum() < FILTERED.top_k, "the filters leave out something, and not all"


def test_each_stage_applies_one_filter_more():
    """Each sees what the one before it leaves: of all five tokens, top_p alone would keep three."""
    logits = torch.tensor([[0.4, 0.3, 0.15, 0.1, 0.05]]).log()
    stages = dict(filter_stages(logits, InspectConfig(temperature=1.0, top_k=3, top_p=0.8, min_p=0.8)))
    assert list(stages) == list(FILTERS) == ["temperature", "top_k", "top_p", "min_p"]
    torch.testing.assert_close(stages["temperature"], logits.exp())
    torch.testing.assert_close(stages["top_k"], torch.tensor([[0.4, 0.3, 0.15, 0.0, 0.0]]) / 0.85)
    torch.testing.assert_close(stages["top_p"], torch.tensor([[0.4, 0.3, 0.0, 0.0, 0.0]]) / 0.7)
    torch.testing.assert_close(stages["min_p"], torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0]]))


def test_at_temperature_0_the_likeliest_token_is_certain():
    for _, probabilities in filter_stages(torch.tensor([[1.0, 3.0, 2.0]]), InspectConfig(temperature=0.0)):
        assert probabilities.tolist() == [[0.0, 1.0, 0.0]]


def test_the_share_of_the_expert_is_what_the_network_alone_leaves():
    """Its probability is (1 - w) p of the network plus w p of the counts: the rest is the share."""
    model, idx = random_variant(EXPERT), random_ids(1, 12, vocab_size=4)[0]
    (expected,) = expectations(model, idx)
    with torch.inference_mode():
        alone = model.without_expert()(idx[None, :-1])[0][0].softmax(-1).gather(1, idx[1:, None])[:, 0]
        mixed = model(idx[None, :-1])[0][0].exp().gather(1, idx[1:, None])[:, 0]
    torch.testing.assert_close(expected.expert_share[:-1], 1 - (1 - model.expert.weight) * alone / mixed)
    assert math.isnan(expected.expert_share[-1])
    assert expectations(random_variant({}), idx)[0].expert_share is None


def test_the_context_of_the_expert_is_the_longest_that_it_has_counted():
    """One that stands in its text twice; never longer than its n-grams, nor than what was read."""
    model = random_variant(EXPERT)
    order, text = model.expert.order, [1, 2, 3, 4, 5, 1, 2, 3, 4, 6, 2, 3]
    model.expert.set_counts(count_ngrams(torch.tensor(text), VOCAB, order))

    def counted(context):
        n = len(context)
        return sum(text[start : start + n] == context for start in range(len(text) - n)) >= 2

    for start in range(len(text)):
        read = [*text[start:], 9, 2, 3, 4]
        (expected,) = expectations(model, torch.tensor(read))
        lengths = [
            max(n for n in range(min(order, end + 2)) if n == 0 or counted(read[end + 1 - n : end + 1]))
            for end in range(len(read))
        ]
        assert expected.expert_context.tolist() == lengths
    assert expectations(random_variant({}), torch.tensor(text))[0].expert_context is None


def test_the_context_of_the_expert_does_not_reach_beyond_the_window():
    model = random_variant(EXPERT)
    model.expert.set_counts(count_ngrams(torch.arange(4).repeat(20), VOCAB, model.expert.order))
    idx = torch.arange(4).repeat(10)
    lengths = torch.cat([expected.expert_context for expected in expectations(model, idx)]).tolist()
    expected = []
    for start, end, first_read in windows(len(idx), model.config.block_size):
        expected += [min(model.expert.order - 1, position + 1 - start) for position in range(first_read, end)]
    assert lengths == expected
    assert len(set(lengths)) > 1


def test_the_likeliest_tokens_have_the_probabilities_of_the_network_and_of_the_mixture():
    model, idx = random_variant(EXPERT), random_ids(1, 12, vocab_size=4)[0]
    (expected,) = expectations(model, idx, top=VOCAB + 5)
    with torch.inference_mode():
        mixture, network = model(idx[None])[0][0].exp(), model.without_expert()(idx[None])[0][0].softmax(-1)
    assert expected.top_ids.shape == (12, VOCAB), "no more than there are"
    torch.testing.assert_close(mixture.gather(1, expected.top_ids), expected.of_top["model"])
    torch.testing.assert_close(network.gather(1, expected.top_ids), expected.of_top["network"])
    counts = (mixture - (1 - model.expert.weight) * network) / model.expert.weight
    torch.testing.assert_close(counts.gather(1, expected.top_ids), expected.of_top["expert"])
    assert (expected.of_top["model"].diff(dim=1) <= 0).all()
    torch.testing.assert_close(expected.of_top["model"].sum(1), torch.ones(12))


def test_the_token_that_follows_has_its_probability_at_each_stage_also_beyond_the_likeliest():
    model, idx = random_variant(EXPERT), random_ids(1, 12, vocab_size=4)[0]
    filters = InspectConfig(temperature=0.7, top_k=3, top_p=0.8)
    (every,) = expectations(model, idx, filters, top=VOCAB)
    (first,) = expectations(model, idx, filters, top=1)
    for name in STAGES:
        places = (every.top_ids[:-1] == idx[1:, None]).nonzero()[:, 1]
        expected = every.of_top[name][:-1].gather(1, places[:, None])[:, 0]
        assert torch.equal(first.of_following[name][:-1], expected)
        assert math.isnan(first.of_following[name][-1])
    assert (first.top_ids[:-1, 0] != idx[1:]).any()
