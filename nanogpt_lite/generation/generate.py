"""The token loop: choose a token, append it, repeat.

How a token is chosen is in `decoding` and `sampling`, decoding of tokens to text in `text_stream`.
"""

import contextlib
from collections.abc import Generator, Iterator

import torch
from torch import Tensor

from nanogpt_lite.config.options import SampleConfig
from nanogpt_lite.generation import cuda_graph
from nanogpt_lite.generation.cuda_graph import Recordings
from nanogpt_lite.generation.decoding import Decoder, PlainDecoder
from nanogpt_lite.generation.graph_decoder import CUDAGraphDecoder
from nanogpt_lite.model.gpt import GPT
from nanogpt_lite.model.kv_cache import KVCache


@torch.inference_mode()
def generate(
    model: GPT, prompt: Tensor, config: SampleConfig, *, use_cache: bool = True, recordings: Recordings | None = None
) -> Generator[Tensor, None, None]:
    """Yield the token ids that follow `prompt`: `max_new_tokens` tensors of shape (B,) on the CPU, one for each step.

    `prompt` is int64, (B, T) with T >= 1. Only its last `block_size` tokens are used. When the context exceeds
    `block_size`, it is cut to its last `block_size // 2` tokens and computed again, so that the cache can be used for
    the next half; the text is the same without a cache. (nanoGPT drops one token at a time instead. Until the first
    cut, the text is that of nanoGPT's and Hugging Face's `generate`.) The model is set to evaluation mode.

    On a CUDA device, decoding is recorded as a graph, which `recordings` keeps for the next call.
    """
    model.eval()
    room = _room(model, prompt, config)
    with _open_decoder(model, config, len(prompt), room, use_cache=use_cache, recordings=recordings) as decoder:
        yield from _decode(decoder, model, prompt, config, use_cache=use_cache)


@torch.inference_mode()
def generate_with_logits(
    model: GPT, prompt: Tensor, config: SampleConfig
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Like `generate`, with the logits (B, V) from which each token was chosen, on the model's device.

    They are those before the temperature and the filters. Nothing is recorded: on a CUDA device it is slower.
    """
    model.eval()
    cache = KVCache(model, len(prompt), _room(model, prompt, config))
    decoder = PlainDecoder(model, config, len(prompt), cache)
    for token in _decode(decoder, model, prompt, config, use_cache=True):
        yield token, decoder.logits


def _decode(
    decoder: Decoder, model: GPT, prompt: Tensor, config: SampleConfig, *, use_cache: bool
) -> Generator[Tensor, None, None]:
    """The tokens that a decoder chooses: see `generate`."""
    block_size = model.config.block_size
    context = prompt[:, -block_size:].cpu()  # (B, T)
    needs_prefill = True
    for step in range(config.max_new_tokens):
        if context.size(1) > block_size:
            context, needs_prefill = context[:, -max(block_size // 2, 1) :], True
        token = decoder.prefill(context, step) if needs_prefill else decoder.decode(context[:, -1:], step)
        needs_prefill = not use_cache
        yield token
        context = torch.cat([context, token[:, None]], dim=1)


def _room(model: GPT, prompt: Tensor, config: SampleConfig) -> int:
    """The length of the longest context in which a token will be chosen."""
    return min(prompt.size(1) + config.max_new_tokens, model.config.block_size)


@contextlib.contextmanager
def _open_decoder(
    model: GPT, config: SampleConfig, batch_size: int, room: int, *, use_cache: bool, recordings: Recordings | None
) -> Iterator[Decoder]:
    """A decoder for contexts of up to `room` tokens."""
    if not use_cache:
        yield PlainDecoder(model, config, batch_size, None)
    elif cuda_graph.can_record(model):
        recordings = Recordings() if recordings is None else recordings
        with recordings.borrow(model, batch_size, room) as recording:
            yield CUDAGraphDecoder(model, config, recording)
    else:
        yield PlainDecoder(model, config, batch_size, KVCache(model, batch_size, room))
