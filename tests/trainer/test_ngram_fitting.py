"""The held-out tokens and the weight of the mixture that they choose."""

import itertools

import numpy as np
import pytest
import torch
from random_gpt import EXPERT, SMALL, VOCAB, random_ids

from nanogpt_lite.checkpoint.checkpoint_file import read_checkpoint
from nanogpt_lite.config.options import NetworkConfig, TrainConfig
from nanogpt_lite.data import batching
from nanogpt_lite.model.ngram_expert import UNFITTED_WEIGHT
from nanogpt_lite.tokenizers.char import CharTokenizer
from nanogpt_lite.trainer import loop, ngram_fitting
from nanogpt_lite.trainer.state import init_state

FITTED = NetworkConfig(block_size=16, ngram_expert=3)
TOKENIZER = CharTokenizer("".join(map(chr, range(97, 97 + VOCAB))))
CONFIG = TrainConfig.from_dict(
    {
        **SMALL.stored(),
        **EXPERT,
        "device": "cpu",
        "dtype": "float32",
        "threads": 1,
        "batch_size": 4,
        "max_iters": 4,
        "eval_interval": 2,
        "batch_sampling": "spread",
    }
)


@pytest.mark.parametrize(
    ("length", "held_out"), [(10, 0), (12_799, 0), (12_800, 256), (50_000, 1000), (409_600, 8192), (10_000_000, 8192)]
)
def test_a_fiftieth_is_held_out_of_a_text_that_is_not_short_and_at_most_a_fixed_number(length, held_out):
    tokens = np.arange(length)
    trained, parts = ngram_fitting.split_held_out(FITTED, tokens)
    assert (len(trained), sum(map(len, parts))) == (length - held_out, held_out)
    assert np.array_equal(np.sort(np.concatenate([trained[:], *parts])), tokens)
    if parts:
        centers = [part.mean() for part in parts]
        assert centers == pytest.approx([(i + 0.5) * length / 8 for i in range(8)], abs=1)


@pytest.mark.parametrize("changes", [{"ngram_expert": 0}, {"ngram_expert_weight": 0.2}, {"block_size": 19_700}])
def test_nothing_is_held_out_without_a_weight_to_choose_or_if_the_rest_were_too_short(changes):
    tokens = np.arange(20_000)
    assert ngram_fitting.split_held_out(FITTED.replace(changes), tokens) == (tokens, [])


def test_the_weight_is_the_most_likely_one():
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.rand(5000, generator=generator) ** power for power in (1, 3))
    prior = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0])  # a weight of 0.4 is the best for these alone
    p, q = torch.cat([p, 1 - prior]).double(), torch.cat([q, prior]).double()
    grid = torch.arange(1, 1000).double() / 1000
    log_likelihoods = torch.stack([((1 - w) * p + w * q).log().sum() for w in grid])
    weight = ngram_fitting._best_weight(p[:5000], q[:5000])
    assert weight == pytest.approx(grid[log_likelihoods.argmax()].item(), abs=0.001)
    assert 0.05 < weight < 0.35, "not the start"


@pytest.mark.parametrize(
    ("number", "of_network", "of_counts", "expected"),
    [
        (8192, 0.9, 0.0, 2 / 8197),  # as if the network had generated all tokens, and of 5 more, the counts 2
        (8192, 0.0, 0.9, 1 - 3 / 8197),
        (8192, 0.9, 0.88, 0.0108037),  # from here on: the roots of slope = 0, a quadratic equation
        (2, 0.9, 0.1, 0.298620),
    ],
)
def test_the_weight_is_exact_near_its_limits_and_few_tokens_move_it_a_little(number, of_network, of_counts, expected):
    weight = ngram_fitting._best_weight(torch.full((number,), of_network), torch.full((number,), of_counts))
    assert min(weight, 1 - weight) == pytest.approx(min(expected, 1 - expected), rel=1e-4)


class Recorded:
    """Token ids that note which of them were read."""

    def __init__(self, tokens):
        self.tokens, self.was_read = tokens, np.zeros(len(tokens), dtype=bool)

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, part):
        self.was_read[part] = True
        return self.tokens[part]


@pytest.mark.parametrize("sampling", ["random", "spread"])
def test_the_network_does_not_see_the_held_out_tokens(tmp_path, monkeypatch, sampling):
    tokens = Recorded(random_ids(1, 16_000)[0].numpy())
    held_out = [start + i for start in range(980, 16_000, 2000) for i in range(40)]
    val = random_ids(1, 100, seed=2)[0].numpy()
    state = init_state(CONFIG.replace({"batch_sampling": sampling, "batch_size": 256}), TOKENIZER)
    fitted_on = []
    monkeypatch.setattr(ngram_fitting, "fit_weight", lambda _, parts: fitted_on.append(np.concatenate(parts).tolist()))
    records = loop.train_loop(state, tokens, val, out_dir=tmp_path)
    next(records)
    assert tokens.was_read[held_out].all()
    tokens.was_read[:] = False
    list(records)
    assert tokens.was_read.sum() > 8000
    assert not tokens.was_read[held_out].any()
    assert fitted_on == [tokens.tokens[held_out].tolist()] * 2


def test_the_weight_is_fitted_at_each_evaluation_to_the_network_alone_and_the_counts(tmp_path):
    tokens, val = (random_ids(1, length, seed=length)[0].numpy() for length in (20_000, 100))
    state = init_state(CONFIG, TOKENIZER)
    expert, held_out = expert_of(state), [tokens[start : start + 50] for start in range(1225, 20_000, 2500)]
    ngram_fitting.count_train_split(expert, CONFIG, tokens)
    weights = [expert.weight.item()]
    for record in loop.train_loop(state, tokens, val, out_dir=tmp_path):
        if record.kind == "eval":
            weights.append(expert.weight.item())
            ids = [torch.from_numpy(part)[None] for part in held_out]
            windows = [(part[:, i : i + 16], part[:, i + 1 : i + 17]) for part in ids for i in (0, 16, 32)]
            windows += [(part[:, 48:49], part[:, 49:]) for part in ids]
            p = torch.cat([slow_probabilities(state.model, *window) for window in windows])
            q = torch.cat([expert.probabilities(expert.contexts(x), y[..., None]).flatten() for x, y in windows])
            assert weights[-1] == pytest.approx(ngram_fitting._best_weight(p, q), abs=1e-6)
    assert weights[0] == pytest.approx(UNFITTED_WEIGHT)
    assert all(one != other for one, other in itertools.pairwise(weights))


@torch.no_grad()
def slow_probabilities(model, x, y):
    """The network's probabilities of targets y (1, T), from its parts."""
    logits = model.lm_head(model.transformer(x, None))
    return torch.tensor([logits[0, t].softmax(-1)[y[0, t]] for t in range(y.size(1))])


def test_a_network_that_gives_no_numbers_leaves_the_weight_as_it_is():
    state = init_state(CONFIG, TOKENIZER)
    torch.nn.init.constant_(state.model.lm_head.weight, float("nan"))
    ngram_fitting.fit_weight(state, [random_ids(1, 40)[0].numpy()])
    assert expert_of(state).weight.item() == pytest.approx(UNFITTED_WEIGHT)


def expert_of(state):
    """The n-gram expert of a training that has one."""
    assert state.model.expert is not None
    return state.model.expert


def test_too_little_memory_leaves_the_weight_as_it_is(monkeypatch):
    state = init_state(CONFIG, TOKENIZER)

    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(ngram_fitting, "_probabilities", fail)
    ngram_fitting.fit_weight(state, [random_ids(1, 40)[0].numpy()])
    assert expert_of(state).weight.item() == pytest.approx(UNFITTED_WEIGHT)


def test_each_checkpoint_has_the_weight_for_its_own_network(tmp_path):
    tokens, val = (random_ids(1, length, seed=length)[0].numpy() for length in (20_000, 100))
    state = init_state(CONFIG.replace({"keep_every": 1, "eval_interval": 4}), TOKENIZER)
    expert = expert_of(state)
    ngram_fitting.count_train_split(expert, CONFIG, tokens)
    _, held_out = ngram_fitting.split_held_out(CONFIG, tokens)
    for record in loop.train_loop(state, tokens, val, out_dir=tmp_path):
        if record.kind == "checkpoint":
            stored = read_checkpoint(tmp_path / f"{record.name}.safetensors").tensors["model.expert.weight"]
            ngram_fitting.fit_weight(state, held_out)
            assert stored == expert.weight
            assert stored.item() != pytest.approx(UNFITTED_WEIGHT)


def test_given_batches_may_have_the_held_out_tokens_so_no_weight_is_fitted(tmp_path):
    tokens, val = (random_ids(1, length, seed=length)[0].numpy() for length in (20_000, 100))
    state = init_state(CONFIG, TOKENIZER)
    given = batching.train_batches(tokens, rows=4, block_size=16, seed=1, step=0)
    list(loop.train_loop(state, tokens, val, out_dir=tmp_path, train_batches=given))
    assert expert_of(state).weight.item() == pytest.approx(UNFITTED_WEIGHT)
