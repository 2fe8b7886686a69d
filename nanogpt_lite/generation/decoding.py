"""Decoding: from a context to the next token, and from each token to the one after it.

The loop over tokens is in `generate`, the choice of a token from logits in `sampling`. `cuda_graph` does the same in
fewer launches on a GPU.
"""

from typing import Protocol

import torch
from torch import Tensor

from nanogpt_lite.config.options import SampleConfig
from nanogpt_lite.device import devices
from nanogpt_lite.generation.sampling import RNG_CHUNK, make_uniforms, sample_token
from nanogpt_lite.model.gpt import GPT
from nanogpt_lite.model.kv_cache import KVCache


class Decoder(Protocol):
    """Chooses tokens of B texts. Ids are int64 and on the CPU. `step` is the number of tokens that were generated."""

    def prefill(self, context: Tensor, step: int) -> Tensor:
        """The token (B,) that follows the context (B, T), which replaces what came before."""

    def decode(self, token: Tensor, step: int) -> Tensor:
        """The token (B,) that follows `token` (B, 1), the last one that was chosen."""


class PlainDecoder:
    """A decoder that calls one operator after the other. Without a cache, `prefill` has to be called for each token."""

    def __init__(self, model: GPT, config: SampleConfig, batch_size: int, cache: KVCache | None) -> None:
        self.model, self.config, self.cache = model, config, cache
        self.uniforms = UniformStream(config.seed, batch_size, model.lm_head.weight.device)
        self.logits = torch.empty(0)  # (B, V): those from which the last token was chosen

    def prefill(self, context: Tensor, step: int) -> Tensor:
        """See `Decoder`."""
        return self._choose(prefill(self.model, context.to(self.uniforms.device), self.cache), step)

    def decode(self, token: Tensor, step: int) -> Tensor:
        """See `Decoder`."""
        assert self.cache is not None, "without a cache, the whole context is computed for each token"
        return self._choose(decode_one_token(self.model, token.to(self.uniforms.device), self.cache), step)

    def _choose(self, logits: Tensor, step: int) -> Tensor:
        self.logits = logits
        return sample_token(logits, self.uniforms.at(step), self.config).cpu()


class UniformStream:
    """The random numbers of B texts, generated `RNG_CHUNK` steps at a time."""

    def __init__(self, seed: int, batch_size: int, device: torch.device) -> None:
        self.device = device
        self._seed, self._batch_size = seed, batch_size
        self._start, self._chunk = -1, torch.empty(0)

    def at(self, step: int) -> Tensor:
        """The random numbers (B,) of a step."""
        return self.chunk(step)[:, step % RNG_CHUNK]

    def chunk(self, step: int) -> Tensor:
        """Those of the steps around it, (B, RNG_CHUNK): the first of them is of a multiple of `RNG_CHUNK`."""
        start = step - step % RNG_CHUNK
        if start != self._start:
            self._start = start
            self._chunk = make_uniforms(self._seed, self._batch_size, start, device=self.device)
        return self._chunk


def prefill(model: GPT, context: Tensor, cache: KVCache | None) -> Tensor:
    """Compute the whole context (B, T), with an empty cache: logits (B, V) for the token after it."""
    if cache is not None:
        cache.clear()
    logits: Tensor = model(context, cache=cache, last_only=True)[0]
    return logits[:, -1].float()


def decode_one_token(model: GPT, token: Tensor, cache: KVCache) -> Tensor:
    """Compute one more token (B, 1) after the cached ones: logits (B, V) for the token after it."""
    with devices.without_onednn(model.lm_head.weight.dtype):
        logits: Tensor = model(token, cache=cache)[0]
    return logits[:, -1].float()
