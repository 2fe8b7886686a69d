"""The operators and the memory of a training step, and the operators of other computations, on a fake GPU.

    echo '[{"function": "step_operators", "preset": "modern"}]' | python benchmarks/fake_training.py

It reads a list of calls as JSON, and writes their results as JSON, operators as `dataclasses.asdict` gives them.
Import it before `torch`, in a process of its own: see `fake_gpu`.
"""

import contextlib
import dataclasses
import inspect
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import fake_gpu  # before torch
import torch
from live_memory import LiveMemory
from operators import Operator, OperatorLog
from torch import Tensor

from nanogpt_lite.config.options import SampleConfig
from nanogpt_lite.config.presets import config_with_preset
from nanogpt_lite.config.schema import Value
from nanogpt_lite.device import fast_paths
from nanogpt_lite.device.distributed import Forward
from nanogpt_lite.generation import decoding, sampling
from nanogpt_lite.generation.cuda_graph import Recording
from nanogpt_lite.optim import build
from nanogpt_lite.tokenizers.char import CharTokenizer
from nanogpt_lite.trainer import evaluation, network_setup, state
from nanogpt_lite.trainer.state import TrainState
from nanogpt_lite.trainer.step import train_step

TOKENIZER = CharTokenizer("".join(map(chr, range(32, 97))))  # 65 characters, as tiny Shakespeare


def make_state(device: torch.device, preset: str, **options: Value) -> TrainState:
    """The state of a training on the fake GPU. `vocab_size`: 65 characters by default, as in tiny Shakespeare."""
    tokenizer = CharTokenizer("".join(map(chr, range(32, 32 + int(options.pop("vocab_size", 65))))))
    config = config_with_preset(preset, {"dtype": "bfloat16", **options, "device": "cuda", "threads": 1})
    config = config.replace({"lr_decay_iters": config.lr_decay_iters or config.max_iters})
    with device:
        return TrainState(config, tokenizer, "", device)


def step_operators(preset: str, *, capability: Sequence[int] = fake_gpu.CAPABILITY, **options: Value) -> list[Operator]:
    """The operators of the second training step: in the first one, the optimizer makes its state.

    To compile, see `fake_inductor`.
    """
    major, minor = capability
    with fake_gpu.fake_gpu((major, minor)) as device:
        trained = make_state(device, preset, **options)
        forward = _prepare_network(trained)
        for _ in range(2):
            batch = random_batch(trained.config.rows_per_step, trained.config.block_size)
            with log_step() as log:
                train_step(trained, forward, batch)
    return log.operators


def step_memory(preset: str, **options: Value) -> dict[str, int]:
    """Bytes on the GPU in a training step: "before" it, with the optimizer's state, and the "peak" in it."""
    with fake_gpu.fake_gpu() as device:
        trained = make_state(device, preset, **options)
        batch = random_batch(trained.config.rows_per_step, trained.config.block_size)
        for parameter in trained.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        trained.optimizer.step()  # which makes its state
        trained.optimizer.zero_grad()
        memory = LiveMemory(device)
        for updated, states in trained.optimizer.state.items():
            for tensor in (updated, *states.values()):
                memory.add(tensor)
        before = memory.live
        with OperatorLog(item_value=0.0), memory:  # a step that waits asks for values
            train_step(trained, trained.model, batch)
    return {"before": before, "peak": memory.peak}


@contextlib.contextmanager
def log_step() -> Iterator[OperatorLog]:
    """Record the operators of a step of one micro-batch: before, in and after its backward pass."""
    log, backward = OperatorLog(item_value=0.0), torch.Tensor.backward

    def logged_backward(loss: Tensor) -> None:
        log.part = "backward"
        backward(loss)  # type: ignore[no-untyped-call]
        log.part = "update"

    log.part = "forward"
    with mock.patch("torch.Tensor.backward", logged_backward), log:
        yield log


def evaluation_operators(preset: str, *, batches: int, **options: Value) -> list[Operator]:
    """The operators of an evaluation."""
    with fake_gpu.fake_gpu() as device:
        trained = make_state(device, preset, **options)
        windows = [random_batch(4, trained.config.block_size) for _ in range(batches)]
        log = OperatorLog(item_value=1.0)
        # not in inference mode, where composite operators would be recorded as one
        mean_losses = inspect.unwrap(evaluation.mean_losses)
        with torch.no_grad(), log:
            mean_losses(trained.model, windows, device, trained.config.dtype)
    return log.operators


def checkpoint_operators(preset: str, **options: Value) -> list[Operator]:
    """The operators of writing a checkpoint, up to the file."""
    with fake_gpu.fake_gpu() as device, TemporaryDirectory() as folder:
        trained = make_state(device, preset, **options)
        batch = random_batch(trained.config.rows_per_step, trained.config.block_size)
        with OperatorLog(item_value=0.0):  # a step that waits asks for values
            train_step(trained, trained.model, batch)
        log = OperatorLog(item_value=1.0)
        with (
            log,
            mock.patch("nanogpt_lite.checkpoint.checkpoint_file._crc32", return_value=0),
            mock.patch("nanogpt_lite.checkpoint.checkpoint_file.write_safetensors", side_effect=_touch),
        ):
            state.save_state(trained, Path(folder) / "last.safetensors")
    return log.operators


def decoding_operators(
    preset: str, *, rows: int, sampling_options: dict[str, Value] | None = None, **options: Value
) -> list[Operator]:
    """The operators of one decoding step as a CUDA graph records it, from a token to the choice of the next one."""
    config = SampleConfig.from_dict(sampling_options or {})
    with fake_gpu.fake_gpu() as device, torch.no_grad():
        model = make_state(device, preset, **options).model.eval()
        recording = Recording(model, rows, model.config.block_size)
        decoding.prefill(model, torch.zeros(rows, 3, dtype=torch.int64, device=device), recording.cache)
        recording.cache.use_device_position(torch.zeros(1, dtype=torch.int64, device=device))
        log = OperatorLog(item_value=0.0)
        with log:
            recording.step(model, config)
    return log.operators


def sampling_operators(*, rows: int, **options: Value) -> list[Operator]:
    """The operators of the choice of a token from logits."""
    config = SampleConfig.from_dict(options)
    with fake_gpu.fake_gpu() as device, torch.no_grad():
        logits = torch.zeros(rows, TOKENIZER.vocab_size, device=device)
        uniforms = torch.zeros(rows, device=device)
        log = OperatorLog(item_value=0.0)
        with log:
            sampling.sample_token(logits, uniforms, config)
    return log.operators


def _prepare_network(trained: TrainState) -> Forward:
    """What the trainer does, but for checks that compare values."""
    with (
        mock.patch.object(fast_paths, "check"),
        mock.patch.object(build, "check_fast_paths"),
        mock.patch.object(network_setup, "_problem_of_compilation", return_value=""),
    ):
        return network_setup.prepare_network(trained)


def random_batch(rows: int, block_size: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets on the CPU."""
    x, y = (torch.randint(TOKENIZER.vocab_size, (rows, block_size)) for _ in range(2))
    return x, y


def _touch(path: Path, *_: Any) -> None:
    path.touch()


FUNCTIONS = {
    function.__name__: function
    for function in (
        step_operators,
        evaluation_operators,
        checkpoint_operators,
        decoding_operators,
        sampling_operators,
        step_memory,
    )
}


def main() -> None:
    """Run the calls on standard input."""
    results = []
    for call in json.load(sys.stdin):
        result = FUNCTIONS[call.pop("function")](**call)
        results.append(result if isinstance(result, dict) else [dataclasses.asdict(operator) for operator in result])
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
