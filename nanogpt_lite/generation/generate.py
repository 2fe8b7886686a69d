"""Drawing text: filters on the logits, and one iterator that generates token by token.

Row r of a call draws from (seed, r) alone, so the text of a row does not depend on how many there are.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from nanogpt_lite.config.options import SampleConfig
from nanogpt_lite.device import devices
from nanogpt_lite.generation.cuda_graph import CUDAGraphStep
from nanogpt_lite.generation.sampling import RNG_CHUNK, sample_token, uniforms
from nanogpt_lite.model.gpt import GPT
from nanogpt_lite.model.kv_cache import KVCache


@torch.inference_mode()
def generate(model: GPT, prompt: Tensor, config: SampleConfig, *, use_cache: bool = True) -> Iterator[Tensor]:
    """Token ids that follow `prompt`, one step at a time: `max_new_tokens` tensors of shape (B,).

    `prompt` is int64, (B, T) with T at least 1, on the model's device. Of a longer one the last `block_size`
    tokens count. When the window of `block_size` tokens is full, its last half is kept and read anew, the same
    with a cache and without. Up to there the text is that of nanoGPT's and Hugging Face's generate.
    """
    model.eval()
    block_size = model.config.block_size
    window, fresh = prompt[:, -block_size:], True
    rows, draws = prompt.size(0), torch.empty(0)
    cache = KVCache(model, rows, window.size(1) + config.max_new_tokens) if use_cache else None
    recorded = CUDAGraphStep(model, cache) if cache is not None and prompt.is_cuda else None
    for number in range(config.max_new_tokens):
        if number % RNG_CHUNK == 0:
            draws = uniforms(config.seed, rows, number, device=prompt.device)
        if window.size(1) > block_size:
            window, fresh = window[:, -max(block_size // 2, 1) :], True
        if cache is None or fresh:
            logits, fresh = prefill(model, window, cache), False
        elif recorded is not None:
            logits = recorded(window[:, -1:])
        else:
            logits = decode_one_token(model, window[:, -1:], cache)
        token = sample_token(logits, draws[:, number % RNG_CHUNK], config)
        yield token
        window = torch.cat([window, token[:, None]], dim=1)


def prefill(model: GPT, window: Tensor, cache: KVCache | None) -> Tensor:
    """Read a whole window (B, T), and nothing before it: logits (B, V) for the token after it."""
    if cache is not None:
        cache.clear()
    logits: Tensor = model(window, cache=cache)[0]
    return logits[:, -1].float()


def decode_one_token(model: GPT, token: Tensor, cache: KVCache) -> Tensor:
    """Read one more token (B, 1): logits (B, V) for the token after it."""
    with devices.without_onednn(model.lm_head.weight.dtype):
        logits: Tensor = model(token, cache=cache)[0]
    return logits[:, -1].float()
