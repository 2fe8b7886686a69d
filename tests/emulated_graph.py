"""CUDA graphs on a CPU: what is captured is recorded operator by operator, and computed again by each replay.

As on a GPU, a capture computes nothing: what it wrote to is put back, and what it made is garbage until the first
replay. An operator for which Python would wait for the device is an error during a capture.
"""

import contextlib
from collections import Counter
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nanogpt_lite.generation import cuda_graph

BENCHMARKS = str(Path(__file__).parents[1] / "benchmarks")


def tensors_in(values):
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def address(tensor):
    return tensor.untyped_storage().data_ptr()


def garbage(dtype):
    """What a tensor holds before its first replay: a number that no test expects."""
    if dtype.is_floating_point:
        return float("nan")
    return True if dtype == torch.bool else torch.iinfo(dtype).max


class Capture(TorchDispatchMode):
    """Computes and records operators; `finish` undoes what they have changed. Those in `waiting` are an error."""

    def __init__(self, waiting):
        super().__init__()
        self.waiting = waiting
        self.calls = []
        self.made = {}  # tensors that the captured operators made, by address
        self.changed = {}  # others that they wrote to, by address: the tensor and its content before

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        if name in self.waiting:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write and address(value) not in self.made:
                self.changed.setdefault(address(value), (value, value.untyped_storage().clone()))
        inputs = {address(tensor) for tensor in tensors_in((args, kwargs))}
        result = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, result))
        self.made |= {address(tensor): tensor for tensor in tensors_in(result) if address(tensor) not in inputs}
        return result

    def finish(self):
        for tensor, before in self.changed.values():
            tensor.untyped_storage().copy_(before)
        for tensor in self.made.values():
            tensor.fill_(garbage(tensor.dtype))


class EmulatedGraph:
    """In place of `torch.cuda.CUDAGraph`."""

    def __init__(self, log, waiting):
        self.capture, self.log = Capture(waiting), log
        self.generator_state = GeneratorState()

    def replay(self):
        assert not self.generator_state.is_capturing, "another capture left the generator's state as within it"
        self.log.append("replay")
        for func, args, kwargs, recorded in self.capture.calls:
            for old, new in zip(tensors_in(recorded), tensors_in(func(*args, **kwargs)), strict=True):
                if address(old) != address(new):
                    old.copy_(new)


class EmulatedStream:
    """In place of `torch.cuda.Stream`: a CPU computes in order."""

    def __init__(self, log):
        self.log = log

    def wait_stream(self, other):
        """Everything is done already."""

    def wait_event(self, event):
        assert event.is_recorded, "a stream waits for an event that was never recorded"


class EmulatedEvent:
    """In place of `torch.cuda.Event`."""

    def __init__(self, log):
        self.log, self.is_recorded = log, False

    def record(self, stream):
        self.is_recorded = True

    def synchronize(self):
        assert self.is_recorded, "Python waits for an event that was never recorded"
        self.log.append("wait")


class GeneratorState:
    """The state of a generator, an object that graphs share. After a failed capture it is as within one."""

    def __init__(self):
        self.is_capturing = False


class EmulatedGenerator:
    """In place of a generator of CUDA."""

    def __init__(self):
        self.state = GeneratorState()

    def graphsafe_get_state(self):
        return self.state

    def graphsafe_set_state(self, state):
        self.state = state

    def clone_state(self):
        assert not self.state.is_capturing
        return GeneratorState()


class Log(list):
    """What was asked of the device, in order: "capture", "replay" and "wait". And its generator of random numbers."""

    def __init__(self):
        super().__init__()
        self.generator = EmulatedGenerator()

    def counts(self):
        return Counter(self)


@contextlib.contextmanager
def emulated_graphs(monkeypatch):
    """Generation records its steps, on the CPU."""
    log, current = Log(), [EmulatedStream([])]

    @contextlib.contextmanager
    def use_stream(stream):
        depth = len(current)
        current.append(stream)
        try:
            yield
        finally:
            del current[depth:]

    @contextlib.contextmanager
    def emulated_capture(graph, stream, capture_error_mode):
        """In place of `torch.cuda.graph`: after an error its end raises another, and its stream stays current."""
        log.append("capture")
        current.append(stream)
        graph.generator_state = log.generator.state
        graph.generator_state.is_capturing = True
        try:
            with graph.capture:
                yield
        except RuntimeError:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")  # noqa: B904
        current.pop()
        graph.generator_state.is_capturing = False
        graph.capture.finish()

    cuda_graph.side_stream.cache_clear()
    with monkeypatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        from operators import SYNCHRONIZING

        patch.setattr(cuda_graph, "_is_on_cuda", lambda model: True)
        patch.setattr(torch.cuda, "CUDAGraph", lambda: EmulatedGraph(log, SYNCHRONIZING))
        patch.setattr(torch.cuda, "graph", emulated_capture)
        patch.setattr(torch.cuda, "Stream", lambda device: EmulatedStream(log))
        patch.setattr(torch.cuda, "current_stream", lambda device=None: current[-1])
        patch.setattr(torch.cuda, "default_generators", [log.generator])
        patch.setattr(torch.cuda, "current_device", lambda: 0)
        patch.setattr(torch.cuda, "Event", lambda: EmulatedEvent(log))
        patch.setattr(torch.cuda, "stream", use_stream)
        patch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
        yield log
    cuda_graph.side_stream.cache_clear()
