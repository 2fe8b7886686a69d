"""Filters against brute force, draws against probabilities, the window policy with cache and without."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_lite.config.options import NetworkConfig, SampleConfig
from nanogpt_lite.device import devices
from nanogpt_lite.generation import generate as generate_module
from nanogpt_lite.generation import sampling, text_stream
from nanogpt_lite.generation.cuda_graph import CUDAGraphStep
from nanogpt_lite.generation.generate import decode_one_token, generate, prefill
from nanogpt_lite.model.gpt import GPT
from nanogpt_lite.model.kv_cache import KVCache
from nanogpt_lite.tokenizers.byte import ByteTokenizer
from nanogpt_lite.tokenizers.char import CharTokenizer

VOCAB = 11


def network(block_size=12):
    torch.manual_seed(0)
    model = GPT(NetworkConfig(block_size=block_size, n_layer=2, n_head=2, n_embd=16, dropout=0.3), VOCAB)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def run(model, prompt, use_cache=True, **options):
    options = {"max_new_tokens": 40, "seed": 3, **options}
    return torch.stack(list(generate(model, prompt, SampleConfig(**options), use_cache=use_cache)), dim=1)


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"position": "rotary", "qk_norm": True, "ngram": 3}])
def test_a_recorded_step_gives_the_text_of_steps_that_are_not(options):
    """On a GPU, where drawing with a cache replays a recording, and drawing without has none; past `block_size` too."""
    torch.manual_seed(0)
    config = NetworkConfig(block_size=12, n_layer=2, n_head=2, n_embd=16, dropout=0.3, **options)
    model = GPT(config, VOCAB).cuda()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    prompt = prompts(3, 4).cuda()
    assert torch.equal(run(model, prompt), run(model, prompt, use_cache=False))
    assert torch.equal(run(model, prompt, temperature=0.0), run(model, prompt, use_cache=False, temperature=0.0))


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.1), ("float16", 0.02)])
def test_a_recorded_step_gives_the_logits_of_the_same_step_in_any_format(dtype, tolerance):
    torch.manual_seed(0)
    config = NetworkConfig(block_size=64, n_layer=2, n_head=2, n_embd=128, dropout=0.0)
    model = GPT(config, VOCAB).cuda().to(devices.DTYPES[dtype]).eval()
    recorded, plain = KVCache(model, 3), KVCache(model, 3)
    step, tokens = CUDAGraphStep(model, recorded), prompts(3, 40).cuda()
    with torch.inference_mode():
        for cache in (recorded, plain):
            prefill(model, tokens[:, :10], cache)
        for place in range(10, 40):
            token = tokens[:, place : place + 1]
            expected = decode_one_token(model, token, plain)
            torch.testing.assert_close(step(token), expected, atol=tolerance, rtol=tolerance)


def prompts(rows, length):
    return torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(5))


def brute_force_kept(logits, top_k, top_p, min_p):
    """Which of a row's tokens may be drawn, one filter after the other, in plain Python and doubles."""
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


# integers far enough apart that no sum of probabilities lies within rounding of a limit
logit_rows = st.lists(st.integers(-40, 40), min_size=2, max_size=9, unique=True).map(lambda row: [x / 8 for x in row])


@settings(max_examples=200, deadline=None)
@given(
    logit_rows, st.integers(0, 9), st.sampled_from([0.0, 0.313, 0.777, 0.951, 1.0]), st.sampled_from([0, 0.11, 0.53])
)
def test_filters_equal_brute_force(row, top_k, top_p, min_p):
    config = SampleConfig(top_k=top_k, top_p=top_p, min_p=min_p)
    filtered = sampling.filter_logits(torch.tensor([row, row[::-1]]), config)
    for got, logits in zip(filtered, (row, row[::-1]), strict=True):
        kept = {i for i, value in enumerate(got.tolist()) if value != -np.inf}
        assert kept == brute_force_kept(logits, top_k, top_p, min_p)
        assert all(got[i].item() == pytest.approx(logits[i]) for i in kept)


def test_limits_that_are_met_exactly():
    """Two tokens of probability 1/2 each: the first alone makes up top_p, both are as likely as the likeliest."""
    halves = torch.zeros(1, 2)
    assert sampling.filter_logits(halves, SampleConfig(top_p=0.5)).isfinite().tolist() == [[True, False]]
    assert sampling.filter_logits(halves, SampleConfig(min_p=1.0)).isfinite().tolist() == [[True, True]]


def test_top_k_keeps_ties_as_nanogpt_does():
    filtered = sampling.filter_logits(torch.tensor([[1.0, 2.0, 2.0, 0.0]]), SampleConfig(top_k=1))
    assert filtered.isfinite().tolist() == [[False, True, True, False]]


def test_draws_follow_the_probabilities():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    config = SampleConfig(temperature=0.7, top_k=3)
    count = 20_000
    draws = torch.rand(count, generator=torch.Generator().manual_seed(0))
    drawn = sampling.sample_token(logits.expand(count, -1), draws, config)
    expected = torch.softmax(logits[:3] / 0.7, 0)
    shares = torch.bincount(drawn, minlength=4) / count
    assert shares[3] == 0
    sigma = (expected * (1 - expected) / count).sqrt()
    assert ((shares[:3] - expected).abs() < 4 * sigma).all()


@pytest.mark.parametrize("draw", [0.0, 1 - 2**-24])
def test_the_extreme_draws_pick_a_possible_token(draw):
    logits = torch.randn(64, VOCAB, generator=torch.Generator().manual_seed(1)) * 20
    logits[:, [0, -1]] = -torch.inf
    drawn = sampling.sample_token(logits, torch.full((64,), draw), SampleConfig(temperature=1.0, top_k=0))
    assert logits.gather(1, drawn[:, None]).isfinite().all()


def test_uniform_numbers_are_one_sequence_per_row():
    first, second = (sampling.uniforms(9, 3, n, device=torch.device("cpu")) for n in (0, sampling.RNG_CHUNK))
    sequence = torch.cat([first, second], dim=1)
    for row in range(3):
        bits = np.random.Philox(key=[9, row]).random_raw(2 * sampling.RNG_CHUNK)
        np.testing.assert_allclose(sequence[row], bits / 2**64, atol=2**-24)
    assert sequence.min() >= 0
    assert sequence.max() < 1


def test_each_token_takes_the_next_number_of_its_row(monkeypatch):
    taken = []
    monkeypatch.setattr(
        generate_module, "sample_token", lambda logits, draws, _: taken.append(draws) or logits.argmax(dim=-1)
    )
    run(network(), prompts(2, 3), max_new_tokens=600, seed=9)
    for row in range(2):
        bits = np.random.Philox(key=[9, row]).random_raw(600)
        np.testing.assert_allclose(torch.stack(taken)[:, row], bits / 2**64, atol=2**-24)


@pytest.mark.parametrize("block_size", [1, 2, 5, 12])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_text_with_cache_equals_text_without_past_block_size(block_size, temperature):
    model = network(block_size)
    prompt = prompts(3, 4)
    with_cache = run(model, prompt, temperature=temperature)
    assert with_cache.shape == (3, 40)
    assert torch.equal(with_cache, run(model, prompt, use_cache=False, temperature=temperature))


def test_greedy_text_follows_the_window_policy():
    """The policy spelled out: a full window is cut to its last half before it grows again."""
    model, block_size = network().eval(), 12
    prompt = prompts(1, 4)
    window, expected = prompt[0].tolist(), []
    for _ in range(40):
        if len(window) > block_size:
            window = window[-(block_size // 2) :]
        expected.append(model(torch.tensor([window]))[0][0, -1].argmax().item())
        window.append(expected[-1])
    assert run(model, prompt, temperature=0.0)[0].tolist() == expected


def test_of_a_long_prompt_the_last_block_counts():
    model = network()
    prompt = prompts(2, 30)
    assert torch.equal(run(model, prompt), run(model, prompt[:, -12:]))


def test_a_batch_of_prompts_equals_the_prompts_one_by_one():
    model = network()
    prompt = prompts(4, 6)
    together = run(model, prompt, temperature=0.0)
    for row in range(4):
        assert torch.equal(run(model, prompt[row : row + 1], temperature=0.0)[0], together[row])


def test_a_row_does_not_depend_on_how_many_there_are():
    model = network()
    prompt = prompts(1, 6)
    many = run(model, prompt.expand(7, -1), temperature=1.0)
    few = run(model, prompt.expand(2, -1), temperature=1.0)
    assert torch.equal(few, many[:2])
    assert len({tuple(row) for row in many.tolist()}) == 7
    assert not torch.equal(few, run(model, prompt.expand(2, -1), temperature=1.0, seed=4))


def test_dropout_is_off_and_the_global_random_state_untouched():
    model = network().train()
    before = torch.get_rng_state()
    assert torch.equal(run(model, prompts(1, 6)), run(model, prompts(1, 6)))
    assert torch.equal(torch.get_rng_state(), before)


def stream(tokenizer, ids_per_row, stop=""):
    """`stream_texts` fed with made-up ids instead of a network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_stream, "generate", lambda *_: iter(torch.tensor(ids_per_row).T))
        config = SampleConfig(num_samples=len(ids_per_row), stop=stop)
        return list(text_stream.stream_texts(network(), tokenizer, np.array([0]), config))


@settings(max_examples=150, deadline=None)
@given(st.text("ab\n", min_size=1, max_size=12), st.text("ab\n", min_size=1, max_size=12), st.text("ab\n", max_size=3))
def test_a_text_ends_before_the_stop_text_wherever_it_falls(one, two, stop):
    length = min(len(one), len(two))
    rows = [one[:length], two[:length]]
    tokenizer = CharTokenizer("\nab")
    pieces = stream(tokenizer, [tokenizer.encode(row).tolist() for row in rows], stop)
    assert text_stream.join_texts(pieces) == [row.split(stop)[0] if stop else row for row in rows]


def test_what_is_certain_streams_at_once_and_the_rest_is_held_back():
    tokenizer = CharTokenizer("\nab")
    pieces = stream(tokenizer, [tokenizer.encode("a\nb\n\na").tolist()], stop="\n\n")
    assert [piece[0] for piece in pieces] == ["a", "", "\nb", "", ""]


@settings(max_examples=50, deadline=None)
@given(st.text(min_size=1, max_size=8))
def test_bytes_stream_as_whole_characters(text):
    octets = ByteTokenizer().encode(text).tolist()
    pieces = [piece[0] for piece in stream(ByteTokenizer(), [octets])]
    assert "".join(pieces) == text
    assert all(piece == "" or piece in text for piece in pieces)


def test_a_text_that_ends_within_a_character_shows_that():
    octets = list("a€".encode()[:-1])
    assert text_stream.join_texts(stream(ByteTokenizer(), [octets])) == ["a\ufffd"]


def test_generation_ends_when_all_rows_have_stopped():
    tokenizer = CharTokenizer("ab")
    steps = stream(tokenizer, [tokenizer.encode(row).tolist() for row in ("abaaaa", "aabaaa")], stop="b")
    assert len(steps) == 3
    assert text_stream.join_texts(steps) == ["a", "aa"]


def test_every_token_streams_for_an_endless_reader():
    model = network()
    generator = generate(model, prompts(1, 3), SampleConfig(max_new_tokens=10**9))
    assert len(list(itertools.islice(generator, 600))) == 600
