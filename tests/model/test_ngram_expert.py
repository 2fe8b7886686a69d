"""The n-gram expert: its counts and probabilities against slow and independent ones, and its place in the network."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from ngram_texts import TEXTS
from random_gpt import EXPERT, SMALL, VOCAB, random_gpt, random_ids
from torch.nn import functional as F

from nanogpt_lite.config.options import NetworkConfig
from nanogpt_lite.diagnosis.ngram_baseline import kneser_ney_losses
from nanogpt_lite.model import ngram_expert
from nanogpt_lite.model.ngram_expert import NgramExpert
from nanogpt_lite.ngrams.discounts import estimate_discounts
from nanogpt_lite.ngrams.ngram_counts import NgramCounts, count_ngrams


def expert_for(counts, vocab_size, order):
    expert = NgramExpert(NetworkConfig(ngram_expert=order), vocab_size)
    expert.set_counts(counts)
    return expert


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("name", TEXTS)
def test_all_counts_give_the_loss_of_the_n_gram_model_that_losses_are_compared_with(name, order):
    vocab_size, text = TEXTS[name]
    val = np.random.default_rng(3).integers(0, vocab_size, 50)
    expert = expert_for(count_ngrams(torch.from_numpy(text), vocab_size, order, min_count=1), vocab_size, order)
    ids = torch.from_numpy(val)[None]
    p = expert.probabilities(expert.contexts(ids[:, :-1]), ids[:, 1:, None])
    expected = kneser_ney_losses(text, val, vocab_size=vocab_size, orders=[order])[order]
    assert -p.log().mean().item() == pytest.approx(expected, abs=1e-5)


def probability_without_rare_contexts(text, vocab_size, order, context, token):
    """p of the order, from dictionaries: of the contexts but the empty one, those that occur twice or more."""
    p, padded = 1 / vocab_size, [None, *text]
    for n in range(1, order + 1):
        ngrams = [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]
        if n == order:
            counts = Counter(ngrams)
        else:
            before = defaultdict(set)
            for i, ngram in enumerate(ngrams):
                before[ngram].add(padded[i])
            counts = Counter({ngram: len(tokens) for ngram, tokens in before.items()})
        discounts = estimate_discounts([0, *(sum(c == k for c in counts.values()) for k in (1, 2, 3, 4))])
        h = tuple(context[len(context) - n + 1 :])
        if len(context) < n - 1 or (h and Counter(zip(*(text[i:] for i in range(n - 1)), strict=False))[h] < 2):
            return p
        children = {ngram[-1]: c for ngram, c in counts.items() if ngram[:-1] == h}
        reserved = sum(discounts[min(c, 3)] for c in children.values())
        kept = children.get(token, 0) - discounts[min(children.get(token, 0), 3)]
        p = (kept + reserved * p) / sum(children.values())
    return p


@pytest.mark.parametrize("name", ["random", "many tokens", "repeated", "sorted", "two tokens"])
def test_probabilities_are_those_of_a_slow_model_without_contexts_that_occurred_once(name):
    vocab_size, text = TEXTS[name]
    order, ids = 4, [*text[:6].tolist(), *np.random.default_rng(4).integers(0, vocab_size, 6).tolist()]
    expert = expert_for(count_ngrams(torch.from_numpy(text), vocab_size, order), vocab_size, order)
    p = expert.distribution(expert.contexts(torch.tensor([ids])))[0]  # (T, V)
    for t in range(len(ids)):
        for token in range(min(vocab_size, 8)):
            expected = probability_without_rare_contexts(
                text.tolist(), vocab_size, order, ids[max(0, t + 2 - order) : t + 1], token
            )
            assert math.isclose(p[t, token].item(), expected, rel_tol=1e-5)


@pytest.mark.parametrize("name", TEXTS)
def test_probabilities_add_up_to_one_and_are_positive(name, monkeypatch):
    vocab_size, text = TEXTS[name]
    expert = expert_for(count_ngrams(torch.from_numpy(text), vocab_size, 4), vocab_size, 4)
    contexts = expert.contexts(random_ids(3, 20, vocab_size=vocab_size))
    p = expert.probabilities(contexts, torch.arange(vocab_size).expand(3, 20, vocab_size))
    assert p.sum(-1).numpy() == pytest.approx(1, abs=1e-5)
    assert p.min() > 0
    monkeypatch.setattr(ngram_expert, "MAX_LOOKUPS", 7 * 4 * vocab_size)
    assert torch.equal(p, expert.probabilities(contexts, torch.arange(vocab_size).expand(3, 20, vocab_size)))


def test_contexts_are_the_same_token_by_token_and_begin_with_the_window():
    vocab_size, text = TEXTS["random"]
    expert = expert_for(count_ngrams(torch.from_numpy(text), vocab_size, 5), vocab_size, 5)
    ids = torch.from_numpy(text[None, :60])
    contexts = expert.contexts(ids)
    nodes = expert.start(1)
    for t in range(ids.size(1)):
        nodes = expert.contexts(ids[:, t : t + 1], nodes)[:, 0]
        assert torch.equal(nodes, contexts[:, t])
    assert torch.equal(expert.contexts(ids[:, 20:], contexts[:, 19]), contexts[:, 20:])
    none = len(expert.tokens) + 1
    assert (expert.contexts(ids[:, 20:])[0, 0, 2:] == none).all(), "one token is known, and none before it"


def test_the_network_gives_the_mixture_in_evaluation_and_itself_in_training():
    model = random_gpt(SMALL.replace({**EXPERT, "ngram_expert_weight": 0.25}))
    alone = random_gpt(SMALL)
    ids, targets = random_ids(2, 12), random_ids(2, 12, seed=5)
    expert = model.expert
    p = expert.probabilities(expert.contexts(ids), torch.arange(VOCAB).expand(2, 12, VOCAB))
    expected = (0.75 * alone(ids)[0].softmax(-1) + 0.25 * p).log()
    logits, loss = model(ids)
    assert loss is None
    assert torch.allclose(logits, expected, atol=1e-5)
    assert torch.allclose(model(ids, last_only=True)[0], expected[:, -1:], atol=1e-5)
    logits, loss = model(ids, targets)
    assert logits.shape == (2, 0, VOCAB)
    losses = model.losses(ids, targets)
    assert losses[0] == loss
    assert losses[1].item() == pytest.approx(alone(ids, targets)[1].item(), abs=1e-6)
    assert torch.equal(alone.losses(ids, targets), alone(ids, targets)[1].expand(2))
    assert loss.item() == pytest.approx(F.cross_entropy(expected.flatten(0, 1), targets.flatten()).item(), abs=1e-5)
    model.train()
    logits, loss = model(ids, targets)
    assert torch.equal(logits, alone(ids)[0])
    assert loss.item() == alone(ids, targets)[1].item()


def test_a_tiny_weight_is_almost_the_network_alone_and_without_the_expert_it_is_the_network():
    model = random_gpt(SMALL.replace({**EXPERT, "ngram_expert_weight": 0.25}))
    alone, ids = random_gpt(SMALL)(random_ids(2, 9))[0], random_ids(2, 9)
    assert torch.equal(model.without_expert()(ids)[0], alone)
    assert model.without_expert().without_expert().expert is None
    model.expert.set_weight(1e-7)
    assert torch.allclose(model(ids)[0], alone.log_softmax(-1), atol=1e-5)


def test_a_weight_that_is_to_be_fitted_has_a_first_value_and_one_outside_of_0_and_1_is_an_error():
    expert = random_gpt(SMALL.replace(EXPERT)).expert
    assert expert.weight.item() == pytest.approx(ngram_expert.UNFITTED_WEIGHT)
    for weight in (0.0, 1.0, -0.5, float("nan")):
        with pytest.raises(ValueError, match="weight of the n-gram expert"):
            expert.set_weight(weight)


def test_tables_stay_in_float32_whatever_the_format_of_the_network():
    model = random_gpt(SMALL.replace(EXPERT))
    before = {name: tensor.clone() for name, tensor in model.expert.named_buffers()}
    model.to(torch.bfloat16)
    assert model.lm_head.weight.dtype == torch.bfloat16
    after = dict(model.expert.named_buffers())
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name


def test_before_it_has_counted_each_token_is_as_likely_as_any_other():
    expert = NgramExpert(NetworkConfig(ngram_expert=3), 5)
    ids = random_ids(2, 4, vocab_size=5)
    assert expert.probabilities(expert.contexts(ids), ids[..., None]).numpy() == pytest.approx(0.2)


def damaged(counts, name, change):
    tensors = {field: tensor.clone() for field, tensor in counts._asdict().items()}
    tensors[name] = change(tensors[name])
    return NgramCounts(**tensors)


DAMAGES = {
    "a token of no vocabulary": ("tokens", lambda t: t.index_fill(0, torch.tensor([5]), 99)),
    "a negative token": ("tokens", lambda t: t.index_fill(0, torch.tensor([0]), -1)),
    "tokens in another order": ("tokens", lambda t: torch.cat([t[1:2], t[:1], t[2:]])),
    "a token too few": ("tokens", lambda t: t[1:]),
    "no tokens": ("tokens", lambda t: t[:0]),
    "a count of zero": ("counts", lambda t: t.index_fill(0, torch.tensor([3]), 0)),
    "a count too many": ("counts", lambda t: F.pad(t, (0, 1), value=1)),
    "a child too many": ("num_children", lambda t: t.index_add(0, torch.tensor([2]), torch.tensor([1], dtype=t.dtype))),
    "negative children": ("num_children", lambda t: torch.cat([t[:1] + 1, t[1:-1], t[-1:] - 1])),
    "no children": ("num_children", torch.zeros_like),
    "no root": ("num_children", lambda t: t[:0]),
    "longer n-grams than the order": ("counts_of_counts", lambda t: t[:2]),
    "histograms of longer n-grams": ("counts_of_counts", lambda t: torch.cat([t, t])),
    "a negative histogram": ("counts_of_counts", lambda t: -t),
    "shorter histograms": ("counts_of_counts", lambda t: t[:, :3]),
    "histograms in one line": ("counts_of_counts", torch.flatten),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_counts_are_refused(damage):
    vocab_size, text = TEXTS["random"]
    counts = damaged(count_ngrams(torch.from_numpy(text), vocab_size, 3), *DAMAGES[damage])
    with pytest.raises(ValueError, match="describe no trie|counts of n-grams are damaged"):
        NgramExpert(NetworkConfig(ngram_expert=3), vocab_size).set_counts(counts)
