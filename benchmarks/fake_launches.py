"""What launches.py counts on the fake GPU, in a process of its own: see `fake_training`.

It reads a list of calls as JSON, and writes for each the result of `dataclasses.asdict` as JSON.
"""

import contextlib
import dataclasses
import functools
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING
from unittest import mock

import fake_gpu  # before torch
import fake_nanogpt
import fake_training
import torch
from operators import Operator, OperatorLog

from nanogpt_lite.config.options import NetworkConfig, SampleConfig
from nanogpt_lite.config.presets import config_with_preset
from nanogpt_lite.device import fallbacks
from nanogpt_lite.device.fallbacks import FastPath
from nanogpt_lite.generation.cuda_graph import Recording
from nanogpt_lite.generation.graph_decoder import CUDAGraphDecoder
from nanogpt_lite.model.gpt import GPT

if TYPE_CHECKING:
    from fake_inductor import Compilation

CONTEXT = 3  # tokens before those that are sampled


@dataclass
class Step:
    """A training step, and what Inductor compiled for it."""

    operators: list[Operator]
    num_graphs: int = 0  # forward and backward each
    num_generated: int = 0  # kernels, see `fake_inductor.Compilation`


@dataclass
class Graphs:
    """What Inductor generated, and Triton compiled."""

    codes: list[str]  # see `fake_inductor.Compilation`
    num_launches: list[int]
    kernels: dict[str, str] = field(default_factory=dict)  # ELF files in hexadecimal digits, by the names of kernels


@dataclass
class Token:
    """What a sampled token takes while its context is not full."""

    operators: list[Operator]  # called by Python
    recorded: list[Operator]  # in the CUDA graph
    replays: int = 0
    waits: int = 0  # for events; operators that wait are not counted


def eager_step(preset: str) -> Step:
    """A step without compilation."""
    return Step(fake_training.step_operators(preset))


def compiled_step(preset: str, *, whole: bool) -> Step:
    """A step with compilation, of the blocks or of the whole network."""
    with _inductor() as compilation:
        operators = fake_training.step_operators(preset, compile=True, compile_whole=whole)
    return Step(operators, len(compilation.codes), compilation.num_generated)


def nanogpt_step(clone: str, *, compiled: bool) -> Step:
    """A step of nanoGPT."""
    if not compiled:
        return Step(fake_nanogpt.step_operators(clone))
    with _inductor() as compilation:
        operators = fake_nanogpt.step_operators(clone, compiled=True)
    return Step(operators, len(compilation.codes), compilation.num_generated)


def graphs(preset: str, *, capability: tuple[int, int], dtype: str, n_layer: int, machine_code: bool) -> Graphs:
    """The graphs of a compiled step for a GPU of this capability, and the machine code of their kernels."""
    capability = capability[0], capability[1]  # JSON has lists
    with _inductor(capability) as compilation:
        fake_training.step_operators(preset, capability=capability, compile=True, dtype=dtype, n_layer=n_layer)
        result = Graphs(compilation.codes, compilation.num_launches)
        if machine_code:
            result.kernels = {name: code.hex() for name, code in compilation.machine_code().items()}
    return result


def sampled_token(preset: str, rows: int) -> Token:
    """A token of each of several texts, with weights in bfloat16."""
    log = OperatorLog(item_value=0.0)
    with fake_gpu.fake_gpu() as device, torch.no_grad(), _recorded_graphs() as token, log:
        model = _bfloat16_model(preset, device)
        decoder = CUDAGraphDecoder(model, SampleConfig(), Recording(model, rows, model.config.block_size))
        chosen = decoder.prefill(torch.zeros(rows, CONTEXT, dtype=torch.int64), 0)
        chosen = decoder.decode(chosen[:, None], 1)  # records the graph
        assert fallbacks.is_usable(FastPath.RECORDED_DECODING)
        token.replays = token.waits = 0
        log.operators.clear()
        decoder.decode(chosen[:, None], 2)
        token.operators = log.operators
    return token


def _inductor(
    capability: tuple[int, int] = fake_gpu.CAPABILITY,
) -> contextlib.AbstractContextManager["Compilation"]:
    from fake_inductor import fake_inductor  # it imports PyTorch's compiler, which takes seconds

    return fake_inductor(capability)


def _bfloat16_model(preset: str, device: torch.device) -> GPT:
    config = config_with_preset(preset, {}).subset(NetworkConfig)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            return GPT(config, fake_training.TOKENIZER.vocab_size).eval()
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def _recorded_graphs() -> Iterator[Token]:
    """CUDA graphs, streams and events that count what is asked of them. A capture records operators."""
    token = Token([], [])

    @contextlib.contextmanager
    def capture(graph: object, **_: object) -> Iterator[None]:
        log = OperatorLog(item_value=0.0)
        with log:
            yield
        token.recorded = log.operators

    def count(name: str) -> None:
        setattr(token, name, getattr(token, name) + 1)

    def ignore(*_: object) -> None:
        pass

    stream = SimpleNamespace(wait_stream=ignore, wait_event=ignore)
    event = SimpleNamespace(record=ignore, synchronize=functools.partial(count, "waits"))
    graph = SimpleNamespace(replay=functools.partial(count, "replays"))
    with contextlib.ExitStack() as stack:
        for name, value in {
            "CUDAGraph": lambda: graph,
            "graph": capture,
            "Stream": lambda device: stream,
            "current_stream": lambda device=None: stream,
            "Event": lambda: event,
            "default_generators": [
                SimpleNamespace(clone_state=ignore, graphsafe_get_state=ignore, graphsafe_set_state=ignore)
            ],
            "current_device": lambda: 0,
            "stream": lambda stream: contextlib.nullcontext(),
            "device": lambda device: contextlib.nullcontext(),
        }.items():
            stack.enter_context(mock.patch(f"torch.cuda.{name}", value))
        yield token


FUNCTIONS = {
    function.__name__: function for function in (eager_step, compiled_step, nanogpt_step, graphs, sampled_token)
}


def main() -> None:
    """Run the calls on standard input."""
    results = []
    for call in json.load(sys.stdin):
        with contextlib.redirect_stdout(sys.stderr):  # nanoGPT prints
            results.append(dataclasses.asdict(FUNCTIONS[call.pop("function")](**call)))
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
