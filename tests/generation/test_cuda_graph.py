"""A captured decoding step against the same step without a CUDA graph. These tests need a GPU."""

import pytest
import torch
from random_gpt import random_gpt, random_ids

from nanogpt_lite.config.options import NetworkConfig, SampleConfig
from nanogpt_lite.device import devices
from nanogpt_lite.generation.cuda_graph import CUDAGraphStep
from nanogpt_lite.generation.generate import decode_one_token, generate, prefill
from nanogpt_lite.model.gpt import GPT
from nanogpt_lite.model.kv_cache import KVCache

VOCAB = 11


def make_prompts(rows, length):
    return random_ids(rows, length, vocab_size=VOCAB, seed=5).cuda()


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"position": "rotary", "qk_norm": True, "ngram": 3}])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.0}])
def test_text_with_cuda_graph_equals_text_without_past_block_size(options, sampling):
    """On a GPU, generation with a cache replays a graph; generation without a cache does not."""
    config = NetworkConfig(block_size=12, n_layer=2, n_head=2, n_embd=16, dropout=0.3, **options)
    model = random_gpt(config, VOCAB, std=0.5).train().cuda()
    settings = SampleConfig(max_new_tokens=40, seed=3, **sampling)
    with_graph, without_graph = (
        torch.stack(list(generate(model, make_prompts(3, 4), settings, use_cache=use_cache)))
        for use_cache in (True, False)
    )
    assert torch.equal(with_graph, without_graph)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.1), ("float16", 0.02)])
def test_logits_of_a_captured_step_equal_those_of_decode_one_token(dtype, tolerance):
    torch.manual_seed(0)
    config = NetworkConfig(block_size=64, n_layer=2, n_head=2, n_embd=128, dropout=0.0)
    model = GPT(config, VOCAB).cuda().to(devices.DTYPES[dtype]).eval()
    graph_cache, plain_cache = KVCache(model, 3), KVCache(model, 3)
    graph_step, tokens = CUDAGraphStep(model, graph_cache), make_prompts(3, 40)
    with torch.inference_mode():
        for cache in (graph_cache, plain_cache):
            prefill(model, tokens[:, :10], cache)
        for position in range(10, 40):
            token = tokens[:, position : position + 1]
            expected = decode_one_token(model, token, plain_cache)
            torch.testing.assert_close(graph_step(token), expected, atol=tolerance, rtol=tolerance)
