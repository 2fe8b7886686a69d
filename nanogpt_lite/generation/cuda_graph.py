"""A decoding step as a CUDA graph: all kernels, from one token to the choice of the next, are launched at once.

Optional. Without it, a GPU waits for Python between kernels that take a few microseconds each. See PyTorch's notes on
CUDA graphs, https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs. When a step is recorded and replayed is
in `graph_decoder`.
"""

import contextlib
import functools
import threading
from collections.abc import Iterator

import torch
from torch import Tensor

from nanogpt_lite.config.options import SampleConfig
from nanogpt_lite.device import fallbacks, fast_paths, memory
from nanogpt_lite.device.fallbacks import FastPath
from nanogpt_lite.generation.decoding import decode_one_token
from nanogpt_lite.generation.sampling import RNG_CHUNK, sample_token
from nanogpt_lite.model.gpt import GPT
from nanogpt_lite.model.kv_cache import KVCache

WARMUP_STEPS = 3  # before the capture: libraries allocate their workspaces in the first steps
ROOM_MULTIPLE = 64  # tokens; the room of a recording is a multiple, so that texts of similar lengths share one
MAX_KEPT = 4  # recordings that are kept for later texts, and graphs of each
# The largest difference between recorded and plain logits, as a fraction of the largest logit.
TOLERANCES = {torch.float32: 0.01, torch.float16: 0.02, torch.bfloat16: 0.1}


Key = tuple[object, ...]
"""All that a recording depends on, or a graph of it."""

State = tuple[int, list[Tensor]]
"""What a step changes: the length of the cache, and tensors."""


def can_record(model: GPT) -> bool:
    """Whether a CUDA graph can compute what the model does.

    A replay runs no Python, so none of the model's hooks, nor what a network that wraps or compiles it does beside.
    Within the caller's autocast, it would read copies of the weights that autocast frees at its end.
    """
    if not isinstance(model, GPT) or not _is_on_cuda(model) or not fallbacks.is_usable(FastPath.RECORDED_DECODING):
        return False
    has_hooks = any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    return not has_hooks and not torch.is_autocast_enabled("cuda")


_capture_lock = threading.Lock()  # a process captures one graph at a time (torch.cuda.graph)


class Recordings:
    """The last recordings of a model, for texts of similar shape. Each holds a cache, and a graph for some options."""

    def __init__(self) -> None:
        self._kept: dict[Key, Recording] = {}  # the oldest first
        memory.clear_when_short(self)

    @contextlib.contextmanager
    def borrow(self, model: GPT, batch_size: int, room: int) -> Iterator["Recording"]:
        """A recording with room for `room` tokens, which nobody else uses meanwhile."""
        room = min(-(-room // ROOM_MULTIPLE) * ROOM_MULTIPLE, model.config.block_size)
        key = (batch_size, room, *_addresses(model))
        device = model.lm_head.weight.device
        recording = self._kept.pop(key, None) or memory.try_twice(lambda: Recording(model, batch_size, room), device)
        try:
            yield recording  # after an error it is not kept
        except GeneratorExit:  # the text was left before its end
            self._keep(key, recording)
            raise
        self._keep(key, recording)

    def clear(self) -> None:
        """Free those that nobody uses, when memory is short."""
        self._kept.clear()

    def _keep(self, key: Key, recording: "Recording") -> None:
        while len(self._kept) >= MAX_KEPT:
            del self._kept[next(iter(self._kept))]
        self._kept[key] = recording


class Recording:
    """One decoding step of a batch as a CUDA graph, or several, for different options of sampling.

    A graph reads and writes fixed addresses. So all that changes has a tensor of its own: the token, the position
    (`KVCache.use_device_position`), the random numbers of `RNG_CHUNK` steps, the tokens that these choose, and the
    number of the step among them. The graph feeds the chosen token back.
    """

    def __init__(self, model: GPT, batch_size: int, room: int) -> None:
        self.device = model.lm_head.weight.device
        self.cache = KVCache(model, batch_size, room)
        self._graphs: dict[Key, tuple[torch.cuda.CUDAGraph, Tensor]] = {}  # by options, with the logits; oldest first
        self._graph: torch.cuda.CUDAGraph | None = None  # the one that is replayed
        with self.device:
            self.token = torch.zeros(batch_size, 1, dtype=torch.int64)
            self.uniforms = torch.zeros(batch_size, RNG_CHUNK)
            self.column = torch.zeros(1, dtype=torch.int64)
            self.chosen = torch.zeros(RNG_CHUNK, batch_size, dtype=torch.int64)
            self.logits = torch.empty(0)  # (B, V) of the last step, once recorded
            self._position = torch.zeros(1, dtype=torch.int64)

    def record(self, model: GPT, config: SampleConfig) -> bool:
        """Record a step that continues from the present state, unless one with these options is. False if it fails.

        PyTorch's error if memory is not enough: it may be the next time.
        """
        options = _recorded_options(config)
        if options not in self._graphs and not self._try_to_record(model, config, options):
            return False
        self._graph, self.logits = self._graphs[options]
        return True

    def replay(self) -> None:
        """Queue the next step on the device."""
        assert self._graph is not None, "nothing is recorded"
        if self.cache.device_position is None:  # after a prefill
            self.cache.use_device_position(self._position)
        self._graph.replay()
        self.cache.length += 1

    def step(self, model: GPT, config: SampleConfig) -> Tensor:
        """What is recorded: all from `token` to the next one. Returns the logits (B, V) between them."""
        logits: Tensor = model(self.token, cache=self.cache)[0][:, -1].float()
        token = sample_token(logits, self.uniforms.index_select(1, self.column)[:, 0], config)
        self.chosen.index_copy_(0, self.column, token[None])
        self.token.copy_(token[:, None])
        self.column.add_(1)
        return logits

    def _try_to_record(self, model: GPT, config: SampleConfig, options: Key) -> bool:
        while len(self._graphs) >= MAX_KEPT:
            del self._graphs[next(iter(self._graphs))]
        state = self._save_state()
        try:
            with _capture_lock:
                self._graphs[options] = self._capture(model, config, state)
        except RuntimeError as error:
            self.cache.device_position = None
            if memory.is_out_of_memory(error):
                self._graphs.clear()
                self._graph = None
                raise
            if not isinstance(error, _NotComparableError):
                fallbacks.give_up(FastPath.RECORDED_DECODING, error)
        finally:
            self._restore_state(state)
        return options in self._graphs

    def _capture(self, model: GPT, config: SampleConfig, state: State) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """The graph of a step, and its logits. `RuntimeError` if these are not those of a plain step."""
        expected = decode_one_token(model, self.token, self.cache)
        self._restore_state(state)
        if bool(expected.isfinite().logical_not().any()):
            raise _NotComparableError
        self.cache.use_device_position(self._position)
        capture_stream, graph = side_stream(self.device, "capture"), torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device):
            current_stream = torch.cuda.current_stream()
            capture_stream.wait_stream(current_stream)
            with torch.cuda.stream(capture_stream):
                for _ in range(WARMUP_STEPS):
                    self.step(model, config)
                    self._restore_state(state)
            current_stream.wait_stream(capture_stream)
            # the outer context returns to this stream even if the capture fails, after which the inner one does not
            with torch.cuda.stream(current_stream), _captured_in(graph, capture_stream):
                logits = self.step(model, config)
        self._restore_state(state)  # a capture runs no kernels, but `cache.length` counted in Python
        graph.replay()
        _require_close(logits, expected, TOLERANCES[model.lm_head.weight.dtype])
        return graph, logits

    def _save_state(self) -> State:
        return self.cache.length, [tensor.clone() for tensor in self._changing_tensors()]

    def _restore_state(self, state: State) -> None:
        self.cache.length = state[0]
        self._position.fill_(state[0])
        for tensor, saved in zip(self._changing_tensors(), state[1], strict=True):
            tensor.copy_(saved)

    def _changing_tensors(self) -> list[Tensor]:
        return [self.token, self.column, self.cache.recent_ids, self.cache.expert_nodes]


class _NotComparableError(RuntimeError):
    """The network's logits are not numbers, which is no fault of a recording."""


def _is_on_cuda(model: GPT) -> bool:
    return bool(model.lm_head.weight.is_cuda)


def _recorded_options(config: SampleConfig) -> tuple[object, ...]:
    """The options that change which kernels a recording holds."""
    return config.temperature, config.top_k, config.top_p, config.min_p, config.tf32


def _addresses(model: GPT) -> Iterator[object]:
    """All that a recording takes from a model: where its tensors are, and what is computed with them."""
    yield model.config
    for module in model.modules():
        yield type(module)
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            yield tensor.data_ptr(), tensor.dtype


def _require_close(logits: Tensor, expected: Tensor, tolerance: float) -> None:
    """`RuntimeError` if logits differ by more than a fraction of the largest one."""
    if problem := fast_paths.differs([logits], [expected], tolerance):
        raise RuntimeError(problem)


@contextlib.contextmanager
def _captured_in(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream) -> Iterator[None]:
    """Capture the block as a graph. The error of the block comes out, not the one at the end of a failed capture."""
    errors: list[RuntimeError] = []
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    own_state = generator.graphsafe_get_state()  # the object itself: other graphs refer to it when they are replayed
    # PyTorch before pull request 176752 leaves the state as within a capture after one that failed, and whatever uses
    # it then raises: a dropout, or the replay of another graph. So it is a state that nothing else uses.
    generator.graphsafe_set_state(generator.clone_state())
    try:
        # thread_local: a call of CUDA from another thread, such as a copy of a checkpoint, does not end the capture
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            try:
                yield
            except RuntimeError as error:
                errors.append(error)
                raise
    except RuntimeError:
        if not errors:
            raise
    finally:
        generator.graphsafe_set_state(own_state)
    # Not above, nor left in the list: an error that refers to itself keeps the tensors of the step until Python's
    # garbage collector runs.
    if errors:
        raise errors.pop()


@functools.cache
def side_stream(device: torch.device, purpose: str) -> torch.cuda.Stream:
    """A stream for a purpose, one per device: cuBLAS keeps a workspace for each stream it ever ran on."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
