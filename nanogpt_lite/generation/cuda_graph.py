"""One step of drawing text as a CUDA graph: a GPU gets all of its kernels at once instead of one by one.

Optional: without it a GPU waits for Python between kernels that take a few microseconds each.
"""

import functools

import torch
from torch import Tensor

from nanogpt_lite.model.gpt import GPT
from nanogpt_lite.model.kv_cache import KVCache

WARMUP_STEPS = 3  # steps before the recording, in which libraries allocate what they need


class CUDAGraphStep:
    """`sampling.decode_one_token` for one network and one cache on a CUDA device. Recorded at the first call."""

    def __init__(self, model: GPT, cache: KVCache) -> None:
        self._model, self._cache = model, cache
        self._graph: torch.cuda.CUDAGraph | None = None
        self._place = torch.zeros(1, dtype=torch.int64, device=cache.keys.device)
        self._token = torch.zeros(cache.keys.size(1), 1, dtype=torch.int64, device=cache.keys.device)
        self._logits = torch.empty(0)

    def __call__(self, token: Tensor) -> Tensor:
        """Read one more token (B, 1): logits (B, V) for the token after it, until the next call."""
        if self._cache.place is None:
            self._cache.keep_on_device(self._place)
        self._token.copy_(token)
        if self._graph is None:
            self._graph = self._record()
        self._graph.replay()
        self._cache.length += 1
        return self._logits[:, -1].float()

    def _record(self) -> torch.cuda.CUDAGraph:
        cache, length, recent = self._cache, self._cache.length, self._cache.recent.clone()
        side = _capture_stream(self._token.device)
        with torch.cuda.device(self._token.device):
            main = torch.cuda.current_stream()
            side.wait_stream(main)
            with torch.cuda.stream(side):
                for _ in range(WARMUP_STEPS):
                    self._model(self._token, cache=cache)
                    self._put_back(length, recent)
            main.wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=side):
                self._logits = self._model(self._token, cache=cache)[0]
            self._put_back(length, recent)  # recording computes nothing, but it counts in Python
        return graph

    def _put_back(self, length: int, recent: Tensor) -> None:
        self._cache.length = length
        self._place.fill_(length)
        self._cache.recent.copy_(recent)


@functools.cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream to record on, one for all: cuBLAS keeps memory for each that it was ever used on."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
