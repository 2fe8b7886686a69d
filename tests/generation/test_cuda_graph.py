"""Generation with a recorded step against generation without a cache: with emulated CUDA graphs, and on a GPU."""

import functools
import gc
import warnings
import weakref
from typing import Any

import pytest
import torch
from emulated_graph import Capture, emulated_graphs
from random_gpt import EXPERT, VARIANTS, random_gpt, random_ids, random_variant

from nanogpt_lite.config.options import NetworkConfig, SampleConfig
from nanogpt_lite.device import devices, fallbacks, memory
from nanogpt_lite.device.fallbacks import FastPath
from nanogpt_lite.generation import cuda_graph, decoding
from nanogpt_lite.generation.cuda_graph import MAX_KEPT, Recording, Recordings
from nanogpt_lite.generation.decoding import decode_one_token, prefill
from nanogpt_lite.generation.generate import generate
from nanogpt_lite.generation.sampling import RNG_CHUNK
from nanogpt_lite.model.kv_cache import KVCache

VOCAB = 11
SAMPLING = [{}, {"temperature": 0.0}, {"top_k": 3, "top_p": 0.9, "min_p": 0.05, "temperature": 1.5}]


@pytest.fixture
def log(monkeypatch):
    with emulated_graphs(monkeypatch) as log:
        yield log


@pytest.fixture(autouse=True)
def one_thread(fresh_fast_paths):
    """More threads only wait for each other, with networks of this size."""
    with devices.compute_settings(1, tf32=False):
        yield


@functools.cache
def make_model(block_size=12, **options):
    config = NetworkConfig(block_size=block_size, n_layer=2, n_head=2, n_embd=16, dropout=0.3, **options)
    return random_gpt(config, VOCAB, std=0.5)


def make_prompts(rows, length):
    return random_ids(rows, length, vocab_size=VOCAB, seed=5)


def text_of(model, prompt, *, use_cache=True, recordings=None, **options):
    config = SampleConfig.from_dict({"max_new_tokens": 40, "seed": 3, **options})
    return torch.stack(list(generate(model, prompt, config, use_cache=use_cache, recordings=recordings)), dim=1)


def is_right(model, prompt, **options):
    """Whether the text is that of a network without a cache, which records nothing."""
    return torch.equal(text_of(model, prompt, **options), text_of(model, prompt, use_cache=False, **options))


@pytest.mark.parametrize(
    ("options", "sampling"),
    [*((options, {}) for options in VARIANTS), *((VARIANTS[1], sampling) for sampling in SAMPLING[1:])],
    ids=str,
)
def test_recorded_text_equals_text_without_a_cache_past_block_size(options, sampling, log):
    assert is_right(make_model(**options), make_prompts(3, 4), **sampling)
    assert log.counts()["capture"] == 1


@pytest.mark.parametrize("block_size", [1, 2, 3, 64])
@pytest.mark.parametrize("max_new_tokens", [1, 2, 3, 70])
def test_recorded_text_of_any_length(block_size, max_new_tokens, log):
    assert is_right(make_model(block_size), make_prompts(2, 2), max_new_tokens=max_new_tokens)


def test_random_numbers_continue_after_a_chunk(log):
    assert is_right(make_model(500), make_prompts(2, 1), max_new_tokens=RNG_CHUNK + 10)


def test_a_token_takes_one_replay_and_one_wait(log):
    """After the first token, and the replay that checks the recording; 60 of them fit into the context."""
    text_of(make_model(64), make_prompts(3, 4), max_new_tokens=60)
    assert log.counts() == {"capture": 1, "replay": 59 + 1, "wait": 59}
    assert log[2:6] == ["replay", "replay", "wait", "replay"], "the next token is computed while one is fetched"


def test_a_recording_is_kept_for_texts_of_the_same_shape(log):
    model, recordings = make_model(), Recordings()
    for seed, length, tokens in ((1, 4, 40), (2, 9, 30), (3, 1, 50)):
        options = {"seed": seed, "max_new_tokens": tokens}
        text = text_of(model, make_prompts(3, length), recordings=recordings, **options)
        assert torch.equal(text, text_of(model, make_prompts(3, length), use_cache=False, **options))
    assert log.counts()["capture"] == 1
    text_of(model, make_prompts(2, 4), recordings=recordings)
    for temperature in (0.5, 0.8, 0.5):
        text = text_of(model, make_prompts(2, 4), recordings=recordings, temperature=temperature)
        assert torch.equal(text, text_of(model, make_prompts(2, 4), use_cache=False, temperature=temperature))
    assert log.counts()["capture"] == 3
    assert len(recordings._kept) == 2, "both temperatures share a cache"


def test_numbers_that_an_earlier_text_left_in_the_cache_do_not_count(log):
    """Such as NaN, if the earlier one was too much for float16."""
    model, recordings = make_model(), Recordings()
    text_of(model, make_prompts(3, 4), recordings=recordings)
    (recording,) = recordings._kept.values()
    with torch.inference_mode():
        for kept in (recording.cache.keys, recording.cache.values):
            kept.fill_(torch.nan)
    text = text_of(model, make_prompts(3, 4), recordings=recordings)
    assert torch.equal(text, text_of(model, make_prompts(3, 4), use_cache=False))
    assert log.counts()["capture"] == 1, "the recording was used again"


def test_a_recording_is_kept_if_a_text_is_left_before_its_end(log):
    model, recordings = make_model(), Recordings()
    for _ in range(2):
        tokens = generate(model, make_prompts(3, 4), SampleConfig(), recordings=recordings)
        for _ in range(5):
            next(tokens)
        tokens.close()
    assert log.counts()["capture"] == 1
    assert torch.equal(
        text_of(model, make_prompts(3, 4), recordings=recordings), text_of(model, make_prompts(3, 4), use_cache=False)
    )


def test_texts_that_are_generated_in_turn_do_not_share_a_recording(log):
    model, recordings = make_model(), Recordings()
    generators = [
        generate(model, make_prompts(3, 4), SampleConfig(seed=seed, max_new_tokens=30), recordings=recordings)
        for seed in (1, 2)
    ]
    texts = [torch.stack(tokens, dim=1) for tokens in zip(*zip(*generators, strict=True), strict=True)]
    for seed, text in enumerate(texts, start=1):
        expected = text_of(model, make_prompts(3, 4), seed=seed, max_new_tokens=30, use_cache=False)
        assert torch.equal(text, expected)


def test_a_recording_follows_weights_that_change_and_not_those_that_move(log):
    model, recordings = random_gpt(make_model().config, VOCAB, std=0.5), Recordings()
    text_of(model, make_prompts(3, 4), recordings=recordings)
    with torch.no_grad():
        model.lm_head.weight.mul_(-1)
    text = text_of(model, make_prompts(3, 4), recordings=recordings)
    assert torch.equal(text, text_of(model, make_prompts(3, 4), use_cache=False))
    assert log.counts()["capture"] == 1
    model.lm_head.weight.data = -model.lm_head.weight.data
    text = text_of(model, make_prompts(3, 4), recordings=recordings)
    assert torch.equal(text, text_of(model, make_prompts(3, 4), use_cache=False))
    assert log.counts()["capture"] == 2


def test_few_recordings_are_kept(log):
    recordings = Recordings()
    for rows in range(1, MAX_KEPT + 3):
        text_of(make_model(), make_prompts(rows, 2), recordings=recordings, max_new_tokens=3)
    gc.collect()
    assert len(recordings._kept) == MAX_KEPT
    text_of(make_model(), make_prompts(MAX_KEPT + 2, 2), recordings=recordings, max_new_tokens=3)
    assert log.counts()["capture"] == MAX_KEPT + 2, "the last one is among them"


def test_a_network_with_hooks_is_not_recorded(log):
    model = random_gpt(make_model().config, VOCAB, std=0.5)
    calls = []
    handle = model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    text_of(model, make_prompts(3, 4), max_new_tokens=8)
    handle.remove()
    assert len(calls) == 8
    assert not log
    text_of(model, make_prompts(3, 4), max_new_tokens=8)
    assert log


def test_a_network_within_autocast_is_not_recorded(log, monkeypatch):
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device_type: device_type == "cuda")
    text_of(make_model(), make_prompts(3, 4), max_new_tokens=8)
    assert not log


def fail_once(function, is_due=lambda *_: True):
    """The function, but its first call that is due runs out of memory."""
    errors = [torch.OutOfMemoryError("CUDA out of memory")]

    def limited(*args, **kwargs):
        if errors and is_due(*args, **kwargs):
            raise errors.pop()
        return function(*args, **kwargs)

    return limited


def is_captured(*_):
    return isinstance(torch.utils._python_dispatch._get_current_dispatch_mode(), Capture)


def fail_to_make_a_cache(patch):
    patch.setattr(KVCache, "__init__", fail_once(KVCache.__init__))


def fail_in_prefill(patch):
    patch.setattr(decoding, "prefill", fail_once(decoding.prefill))


def fail_in_warm_up(patch):
    patch.setattr(Recording, "step", fail_once(Recording.step))


def fail_in_capture(patch):
    patch.setattr(Recording, "step", fail_once(Recording.step, is_captured))


@pytest.mark.parametrize("fail", [fail_to_make_a_cache, fail_in_prefill, fail_in_warm_up, fail_in_capture])
def test_kept_recordings_make_room_when_memory_is_short(fail, log, monkeypatch):
    """The text is recorded all the same."""
    recordings, model = Recordings(), make_model()
    text_of(model, make_prompts(2, 4), recordings=recordings)
    (kept,) = map(weakref.ref, recordings._kept.values())
    log.clear()
    with monkeypatch.context() as patch:
        fail(patch)
        text = text_of(model, make_prompts(3, 4), recordings=recordings)
    assert torch.equal(text, text_of(model, make_prompts(3, 4), use_cache=False))
    gc.collect()
    assert kept() is None
    assert len(recordings._kept) == 1
    assert log.counts()["replay"] >= 20


def test_graphs_of_other_options_make_room_too(log, monkeypatch):
    recordings, model = Recordings(), make_model()
    for temperature in (0.5, 0.8):
        text_of(model, make_prompts(2, 4), recordings=recordings, temperature=temperature)
    fail_in_capture(monkeypatch)
    text_of(model, make_prompts(2, 4), recordings=recordings, temperature=0.9)
    (recording,) = recordings._kept.values()
    assert len(recording._graphs) == 1


def test_kept_recordings_are_freed_when_a_training_needs_memory(log):
    recordings = Recordings()
    text_of(make_model(), make_prompts(2, 4), recordings=recordings)
    memory.free_memory(torch.device("cpu"))
    assert not recordings._kept


@pytest.mark.parametrize("is_due", [lambda *_: True, is_captured], ids=["in the first step", "in the capture"])
def test_too_little_memory_to_record_is_no_reason_to_give_up(is_due, log, monkeypatch):
    step = Recording.step

    def fail(self, model, config):
        if is_due():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(self, model, config)

    with monkeypatch.context() as patch:
        patch.setattr(Recording, "step", fail)
        assert is_right(make_model(), make_prompts(3, 4))
    assert log.counts()["replay"] == 0
    assert fallbacks.is_usable(FastPath.RECORDED_DECODING)
    assert is_right(make_model(), make_prompts(3, 4))
    assert log.counts()["replay"] > 0


def test_a_failed_capture_leaves_the_generator_as_it_was(log, monkeypatch):
    """Else the next dropout of a training raises an error."""
    step = Recording.step

    def fail(self, model, config):
        if is_captured():
            raise RuntimeError("operation not permitted when stream is capturing")
        return step(self, model, config)

    own_state = log.generator.state
    texts = generate(make_model(), make_prompts(2, 4), SampleConfig(max_new_tokens=40, seed=3))
    first = [next(texts) for _ in range(5)]  # it is recorded, and goes on after the failure of another
    with monkeypatch.context() as patch:
        patch.setattr(Recording, "step", fail)
        with pytest.warns(UserWarning, match="recorded decoding cannot be used .operation not permitted"):
            assert is_right(make_model(), make_prompts(3, 4))
    assert log.counts()["capture"] == 2
    assert torch.equal(torch.stack([*first, *texts], dim=1), text_of(make_model(), make_prompts(2, 4), use_cache=False))
    assert log.generator.state is own_state
    assert not own_state.is_capturing


def test_logits_that_are_no_numbers_are_no_fault_of_recording(log):
    broken = make_model.__wrapped__()
    with torch.no_grad():
        broken.lm_head.weight.fill_(torch.nan)
    text_of(broken, make_prompts(2, 4))
    assert log.counts()["replay"] == 0
    assert fallbacks.is_usable(FastPath.RECORDED_DECODING)
    assert is_right(make_model(), make_prompts(3, 4))
    assert log.counts()["replay"] > 0


def test_a_recording_reads_the_weight_of_the_expert_from_memory(log):
    model, recordings = random_variant(EXPERT), Recordings()
    texts = []
    for weight in (0.1, 0.97):
        model.expert.set_weight(weight)
        texts.append(text_of(model, make_prompts(2, 4), recordings=recordings))
        assert torch.equal(texts[-1], text_of(model, make_prompts(2, 4), use_cache=False))
    assert not torch.equal(*texts)
    assert log.counts()["capture"] == 1


def test_an_error_in_a_capture_does_not_keep_its_tensors(log, monkeypatch):
    """Without the garbage collector: a GPU's memory would stay in use until it runs."""
    step, tensors = Recording.step, []

    def fail(self, model, config):
        logits = step(self, model, config)
        if is_captured():
            tensors.append(weakref.ref(logits))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return logits

    monkeypatch.setattr(Recording, "step", fail)
    gc.collect()
    gc.disable()
    try:
        text_of(make_model(), make_prompts(3, 4))
        assert [tensor() for tensor in tensors] == [None, None]
    finally:
        gc.enable()


class Wrapper(torch.nn.Module):
    """As torch.compile and DataParallel do, it passes on what it does not know."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def __getattr__(self, name):
        return super().__getattr__(name) if name == "model" else getattr(self.model, name)

    def forward(self, *args, **kwargs):
        return self.model(*args, **kwargs)


def test_a_wrapped_network_is_not_recorded(log):
    wrapper: Any = Wrapper(make_model())
    assert torch.equal(text_of(wrapper, make_prompts(3, 4)), text_of(make_model(), make_prompts(3, 4), use_cache=False))
    assert not log


def break_capture(monkeypatch):
    """An error in a captured step, and not in one before."""
    step = Recording.step

    def fail(self, model, config):
        if is_captured():
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nCUDA kernel errors might")
        return step(self, model, config)

    monkeypatch.setattr(Recording, "step", fail)


def break_mask(monkeypatch):
    """All of the cache takes part in attention, also what is empty."""
    positions = KVCache.positions

    def without_mask(cache, num_new):
        result = positions(cache, num_new)
        cache.attn_mask = None if cache.attn_mask is None else torch.zeros_like(cache.attn_mask)
        return result

    monkeypatch.setattr(KVCache, "positions", without_mask)


def break_with_nan(monkeypatch):
    step = Recording.step
    monkeypatch.setattr(Recording, "step", lambda self, model, config: step(self, model, config) * torch.nan)


@pytest.mark.parametrize(
    ("breaks", "reason"),
    [
        (break_capture, "CUDA error: operation not permitted when stream is capturing"),
        (break_mask, "its results differ by 0"),
        (break_with_nan, "its results differ by nan"),
    ],
)
def test_without_recording_the_text_is_the_same(breaks, reason, log, monkeypatch):
    breaks(monkeypatch)
    stream = torch.cuda.current_stream()
    with pytest.warns(UserWarning, match="recorded decoding cannot be used") as warned:
        assert is_right(make_model(ngram=3), make_prompts(3, 4))
    assert len(warned) == 1
    assert torch.cuda.current_stream() is stream
    assert fallbacks.describe()[0].startswith(f"recorded decoding: {reason}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log.clear()
        assert is_right(make_model(ngram=3), make_prompts(3, 4))
    assert not log, "the next text does not try again"


class Mutants:
    """Faults of the bookkeeping, as changes of the code. The check of the first replay is switched off."""

    @staticmethod
    def position_is_not_restored(patch):
        patch.setattr(torch.Tensor, "fill_", skip_call(torch.Tensor.fill_, lambda tensor: tensor.shape == (1,)))

    @staticmethod
    def recent_ids_are_not_restored(patch):
        patch.setattr(Recording, "_changing_tensors", lambda self: [self.token, self.column])

    @staticmethod
    def token_is_not_restored(patch):
        patch.setattr(Recording, "_changing_tensors", lambda self: [self.column, self.cache.recent_ids])

    @staticmethod
    def column_is_not_restored(patch):
        patch.setattr(Recording, "_changing_tensors", lambda self: [self.token, self.cache.recent_ids])

    @staticmethod
    def length_does_not_count(patch):
        def replay(self):
            self.cache.use_device_position(self._position)
            self._graph.replay()

        patch.setattr(Recording, "replay", replay)

    @staticmethod
    def mask_is_of_the_recorded_length(patch):
        positions = KVCache.positions

        def fixed_mask(self, num_new):
            result = positions(self, num_new)
            if self.attn_mask is not None:
                is_empty = torch.arange(self.keys.size(3)) > self.length
                self.attn_mask = torch.zeros(1, self.keys.size(3)).masked_fill(is_empty, -torch.inf)
            return result

        patch.setattr(KVCache, "positions", fixed_mask)

    @staticmethod
    def position_does_not_count(patch):
        advance = KVCache.advance

        def stay(self, idx):
            position = None if self.device_position is None else self.device_position.clone()
            advance(self, idx)
            if position is not None:
                self.device_position.copy_(position)

        patch.setattr(KVCache, "advance", stay)

    @staticmethod
    def token_is_not_fed_back(patch):
        step = Recording.step

        def forget_token(self, model, config):
            token = self.token.clone()
            logits = step(self, model, config)
            self.token.copy_(token)
            return logits

        patch.setattr(Recording, "step", forget_token)

    @staticmethod
    def step_waits_for_a_value(patch):
        step = Recording.step

        def wait(self, model, config):
            self.column.item()
            return step(self, model, config)

        patch.setattr(Recording, "step", wait)


def skip_call(method, is_skipped):
    return lambda tensor, *args: tensor if is_skipped(tensor) else method(tensor, *args)


@pytest.mark.parametrize("mutant", [name for name in vars(Mutants) if not name.startswith("_")])
def test_faults_of_the_bookkeeping_are_noticed(mutant, log, monkeypatch):
    """So the tests above can fail: each of these faults gives another text, or an error."""
    model, prompt = make_model(ngram=3), make_prompts(3, 4)
    expected = text_of(model, prompt, use_cache=False)
    monkeypatch.setattr(cuda_graph, "_require_close", lambda logits, expected, tolerance: None)
    assert torch.equal(text_of(model, prompt), expected)
    getattr(Mutants, mutant)(monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a recording that fails
        try:
            text = text_of(model, prompt)
        except (AssertionError, IndexError, RuntimeError, UserWarning):
            return
    assert not torch.equal(text, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"position": "rotary", "qk_norm": True, "ngram": 3}])
@pytest.mark.parametrize("sampling", SAMPLING)
def test_on_a_gpu_recorded_text_equals_text_without_a_cache(options, sampling):
    model = random_gpt(make_model(**options).config, VOCAB, std=0.5).cuda()
    assert is_right(model, make_prompts(3, 4), **sampling)
    assert is_right(model, make_prompts(3, 4), max_new_tokens=RNG_CHUNK + 10, **sampling)
    assert not fallbacks.describe()


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.1), ("float16", 0.02)])
def test_on_a_gpu_recorded_logits_equal_those_of_decode_one_token(dtype, tolerance):
    config = NetworkConfig(block_size=64, n_layer=2, n_head=2, n_embd=128, dropout=0.0)
    model = random_gpt(config, VOCAB, std=0.02).cuda().to(devices.DTYPES[dtype])
    recording, cache, tokens = Recording(model, 3, 64), KVCache(model, 3), make_prompts(3, 40).cuda()
    with torch.inference_mode():
        for each in (recording.cache, cache):
            prefill(model, tokens[:, :10], each)
        for position in range(10, 40):
            token = tokens[:, position : position + 1]
            recording.token.copy_(token)
            assert recording.record(model, SampleConfig())
            recording.replay()
            expected = decode_one_token(model, token, cache)
            torch.testing.assert_close(recording.logits, expected, atol=tolerance, rtol=tolerance)
