"""The token loop: compute logits, sample a token, append it, repeat.

The choice of a token from logits is in `sampling`, decoding of tokens to text in `text_stream`.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from nanogpt_lite.config.options import SampleConfig
from nanogpt_lite.device import devices
from nanogpt_lite.generation.cuda_graph import CUDAGraphStep
from nanogpt_lite.generation.sampling import RNG_CHUNK, make_uniforms, sample_token
from nanogpt_lite.model.gpt import GPT
from nanogpt_lite.model.kv_cache import KVCache


@torch.inference_mode()
def generate(model: GPT, prompt: Tensor, config: SampleConfig, *, use_cache: bool = True) -> Iterator[Tensor]:
    """Yield the token ids that follow `prompt`: `max_new_tokens` tensors of shape (B,), one for each step.

    `prompt` is int64, (B, T) with T >= 1, on the model's device. Only its last `block_size` tokens are used. When the
    context exceeds `block_size`, it is cut to its last `block_size // 2` tokens and computed again, so that the cache
    can be used for the next half; the text is the same without a cache. (nanoGPT drops one token at a time instead.
    Until the first cut, the text is that of nanoGPT's and Hugging Face's `generate`.) The model is set to evaluation
    mode.
    """
    model.eval()
    block_size = model.config.block_size
    context = prompt[:, -block_size:]  # (B, T)
    batch_size = prompt.size(0)
    cache = KVCache(model, batch_size, context.size(1) + config.max_new_tokens) if use_cache else None
    graph_step = CUDAGraphStep(model, cache) if cache is not None and prompt.is_cuda else None
    uniforms = torch.empty(0)  # (B, RNG_CHUNK)
    needs_prefill = True
    for step in range(config.max_new_tokens):
        if step % RNG_CHUNK == 0:
            uniforms = make_uniforms(config.seed, batch_size, step, device=prompt.device)
        if context.size(1) > block_size:
            context, needs_prefill = context[:, -max(block_size // 2, 1) :], True
        if cache is None or needs_prefill:
            logits, needs_prefill = prefill(model, context, cache), False
        elif graph_step is not None:
            logits = graph_step(context[:, -1:])
        else:
            logits = decode_one_token(model, context[:, -1:], cache)
        token = sample_token(logits, uniforms[:, step % RNG_CHUNK], config)  # (B,)
        yield token
        context = torch.cat([context, token[:, None]], dim=1)


def prefill(model: GPT, context: Tensor, cache: KVCache | None) -> Tensor:
    """Compute the whole context (B, T), with an empty cache: logits (B, V) for the token after it."""
    if cache is not None:
        cache.clear()
    logits: Tensor = model(context, cache=cache)[0]
    return logits[:, -1].float()


def decode_one_token(model: GPT, token: Tensor, cache: KVCache) -> Tensor:
    """Compute one more token (B, 1) after the cached ones: logits (B, V) for the token after it."""
    with devices.without_onednn(model.lm_head.weight.dtype):
        logits: Tensor = model(token, cache=cache)[0]
    return logits[:, -1].float()
