"""The decoder that replays a CUDA graph for each token. What a graph holds and how it is captured: see `cuda_graph`."""

import functools

import torch
from torch import Tensor

from nanogpt_lite.config.options import SampleConfig
from nanogpt_lite.device import devices, memory
from nanogpt_lite.generation.cuda_graph import Recording, side_stream
from nanogpt_lite.generation.decoding import PlainDecoder
from nanogpt_lite.generation.sampling import RNG_CHUNK
from nanogpt_lite.model.gpt import GPT


class CUDAGraphDecoder:
    """A decoder that replays a recording. While Python works with one token, the GPU computes the next."""

    def __init__(self, model: GPT, config: SampleConfig, recording: Recording) -> None:
        self._model, self._config, self._recording = model, config, recording
        self._plain = PlainDecoder(model, config, len(recording.token), recording.cache)
        self._can_record = True
        self._chosen_on_cpu = devices.host_buffer(recording.chosen)
        self._queued = 0  # the last step that is queued on the device
        self._computed = [_make_event(), _make_event()]  # of the last two steps: their tokens are chosen
        self._fetched = _make_event()

    def prefill(self, context: Tensor, step: int) -> Tensor:
        """See `Decoder`."""
        self._queued = step
        return memory.try_twice(lambda: self._plain.prefill(context, step), self._recording.device)

    def decode(self, token: Tensor, step: int) -> Tensor:
        """See `Decoder`."""
        if self._queued < step and self._can_record:  # `token` was chosen by `prefill`
            self._recording.token.copy_(token)
            self._load_uniforms(step)
            self._can_record = self._record()
        if not self._can_record:
            return self._plain.decode(token, step)
        if self._queued < step:
            self._queue(step)
        has_next = step + 1 < self._config.max_new_tokens
        if has_next and self._recording.cache.length < self._model.config.block_size:  # else comes a prefill
            self._queue(step + 1)
        return self._fetch(step)

    def _record(self) -> bool:
        """Whether the step is recorded. If memory is not enough, this text goes on without."""
        record = functools.partial(self._recording.record, self._model, self._config)
        try:
            return memory.try_twice(record, self._recording.device)
        except RuntimeError as error:
            if not memory.is_out_of_memory(error):
                raise
        return False

    def _queue(self, step: int) -> None:
        if step % RNG_CHUNK == 0:
            self._load_uniforms(step)
        self._recording.replay()
        self._computed[step % 2].record(torch.cuda.current_stream(self._recording.device))
        self._queued = step

    def _load_uniforms(self, step: int) -> None:
        self._recording.uniforms.copy_(self._plain.uniforms.chunk(step))
        self._recording.column.fill_(step % RNG_CHUNK)

    def _fetch(self, step: int) -> Tensor:
        """The token of a step. It is copied on a stream of its own, so as not to wait for the next step."""
        stream, column = side_stream(self._recording.device, "fetch"), step % RNG_CHUNK
        stream.wait_event(self._computed[step % 2])
        with torch.cuda.stream(stream):
            self._chosen_on_cpu[column].copy_(self._recording.chosen[column], non_blocking=True)
            self._fetched.record(stream)
        self._fetched.synchronize()
        return self._chosen_on_cpu[column].clone()


def _make_event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]
