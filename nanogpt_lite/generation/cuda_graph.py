"""One decoding step as a CUDA graph: all its kernels are launched at once.

Optional. Without it, a GPU waits for Python between kernels that take a few microseconds each. See PyTorch's notes on
CUDA graphs, https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

import functools

import torch
from torch import Tensor

from nanogpt_lite.model.gpt import GPT
from nanogpt_lite.model.kv_cache import KVCache

WARMUP_STEPS = 3  # before the capture: libraries allocate their workspaces in the first steps


class CUDAGraphStep:
    """`generate.decode_one_token` for one model and one cache on a CUDA device, captured at the first call.

    A graph reads and writes fixed addresses. So the token, the position and the logits have tensors of their own, and
    the cache keeps its position on the device (`KVCache.use_device_position`).
    """

    def __init__(self, model: GPT, cache: KVCache) -> None:
        self._model, self._cache = model, cache
        self._graph: torch.cuda.CUDAGraph | None = None
        self._position = torch.zeros(1, dtype=torch.int64, device=cache.keys.device)
        self._token = torch.zeros(cache.keys.size(1), 1, dtype=torch.int64, device=cache.keys.device)  # (B, 1)
        self._logits = torch.empty(0)  # (B, 1, V) once captured

    def __call__(self, token: Tensor) -> Tensor:
        """Compute one more token (B, 1): logits (B, V) for the token after it, valid until the next call."""
        if self._cache.device_position is None:
            self._cache.use_device_position(self._position)
        self._token.copy_(token)
        if self._graph is None:
            self._graph = self._capture()
        self._graph.replay()
        self._cache.length += 1
        return self._logits[:, -1].float()

    def _capture(self) -> torch.cuda.CUDAGraph:
        cache, length, recent_ids = self._cache, self._cache.length, self._cache.recent_ids.clone()
        capture_stream = _capture_stream(self._token.device)
        with torch.cuda.device(self._token.device):
            current_stream = torch.cuda.current_stream()
            capture_stream.wait_stream(current_stream)
            with torch.cuda.stream(capture_stream):
                for _ in range(WARMUP_STEPS):
                    self._model(self._token, cache=cache)
                    self._restore_cache(length, recent_ids)
            current_stream.wait_stream(capture_stream)
            graph = torch.cuda.CUDAGraph()
            # thread_local: a call of CUDA from another thread, such as a copy of a checkpoint, does not end the capture
            with torch.cuda.graph(graph, stream=capture_stream, capture_error_mode="thread_local"):
                self._logits = self._model(self._token, cache=cache)[0]
            self._restore_cache(length, recent_ids)  # a capture runs no kernels, but `cache.length` counted in Python
        return graph

    def _restore_cache(self, length: int, recent_ids: Tensor) -> None:
        self._cache.length = length
        self._position.fill_(length)
        self._cache.recent_ids.copy_(recent_ids)


@functools.cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream to capture on, one per device: cuBLAS keeps a workspace for each stream it ever ran on."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
