"""Measurements that need a process of their own. `Harness.probe` starts it and reads the JSON in the last line.

    python probe.py FUNCTION ARGUMENTS…

The functions about nanoGPT run in a folder that contains its files, and import them from there.
"""

import contextlib
import io
import json
import runpy
import sys
import time
from collections import deque
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import nanogpt_lite as ng
from nanogpt_lite.data import batching
from nanogpt_lite.tracking.records import StepRecord
from nanogpt_lite.trainer import evaluation

TOKENS = 500  # in a sample
WARM_UP = 20  # tokens
TEMPERATURE, TOP_K = 0.8, 200


def start(kind: str) -> dict[str, float]:
    """Seconds from a call about text.txt, in the current folder, to the first step, or to the first batch.

    `kind`: prepare (to its end), train, verify (train with `verify`), resume or evaluate (the run of a train before).
    """
    options: dict[str, Any] = {"preset": "cpu", "device": "cpu", "eval_iters": 1, "log_interval": 1}
    if kind == "resume":
        options = {"init_from": "resume", "max_iters": 2}
    else:
        options |= {"dataset": "text.txt", "max_iters": 1, "overwrite": True, "verify": kind == "verify"}
    begin = time.perf_counter()
    if kind == "prepare":
        ng.prepare("text.txt")
        return {"seconds": time.perf_counter() - begin}
    if kind == "evaluate":
        return {"seconds": _time_of_first_batch() - begin}
    seconds = [time.perf_counter() - begin for r in ng.training(out_dir="run", **options) if isinstance(r, StepRecord)]
    return {"seconds": seconds[0]}


def _time_of_first_batch() -> float:
    """The time, by `perf_counter`, when the evaluation of the run has its first batch. No loss is computed."""
    times: list[float] = []

    def mean_losses(_model: nn.Module, batches: Iterator[batching.Batch], *_: Any) -> evaluation.Losses:
        next(batches)
        times.append(time.perf_counter())
        return evaluation.Losses(0.0, 0.0)

    evaluation.mean_losses = mean_losses  # type: ignore[assignment]
    ng.evaluate("run", device="cpu")
    return times[0]


def train_lite(*options: str) -> dict[str, float]:
    """Train as the command `train` does; the peak memory of the GPU in MB."""
    from nanogpt_lite.cli.main import main  # only here: `start` counts what it imports

    if status := main(["train", *options]):
        sys.exit(status)
    return {"device_memory": _peak_device_memory()}


def train_nanogpt(log: str, *arguments: str) -> dict[str, float]:
    """Run nanoGPT's train.py; the peak memory of the GPU in MB.

    The file `log` gets, as JSON, the lines that it printed, each with the time in seconds.
    """
    _import_nanogpt_model()
    sys.argv = ["train.py", *arguments]
    with contextlib.redirect_stdout(_TimedLines()) as output:
        runpy.run_path("train.py", run_name="__main__")
    Path(log).write_text(json.dumps(output.lines), encoding="utf-8")
    return {"device_memory": _peak_device_memory()}


def sample_lite(
    checkpoint: str, samples: str, precision: str, device: str, length: str = str(TOKENS)
) -> dict[str, float]:
    """Tokens per second of `samples` samples at once, after a warm-up; loading is not timed.

    On a CPU as the command `sample` generates them. On a GPU from a loaded network: the first text records a CUDA
    graph, which the timed one replays.
    """
    options: dict[str, Any] = {"int8": precision == "int8", "dtype": precision.replace("int8", "bfloat16")}
    options["device"] = device
    run = checkpoint if device == "cpu" else ng.load(checkpoint, **options)

    def time_sampling(tokens: int) -> float:
        chunks = ng.stream_batch(
            run,
            **options,
            start="\n",
            num_samples=int(samples),
            max_new_tokens=tokens,
            temperature=TEMPERATURE,
            top_k=TOP_K,
        )
        next(chunks)  # the prompt
        start = time.perf_counter()
        deque(chunks, maxlen=0)
        return time.perf_counter() - start

    time_sampling(warm_up_tokens(device, int(length)))
    return {"tokens_per_second": int(samples) * int(length) / time_sampling(int(length))}


def sample_nanogpt(checkpoint: str, samples: str, device: str, length: str = str(TOKENS)) -> dict[str, float]:
    """Tokens per second of `samples` samples one after the other, as nanoGPT's sample.py generates them."""
    model = _load_nanogpt(checkpoint).to(device)
    prompt = torch.zeros(1, 1, dtype=torch.int64, device=device)
    torch.backends.cuda.matmul.allow_tf32 = True

    def generate(tokens: int) -> None:
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=device != "cpu"), torch.no_grad():
            model.generate(prompt, tokens, temperature=TEMPERATURE, top_k=TOP_K).tolist()

    generate(warm_up_tokens(device, int(length)))
    start = time.perf_counter()
    for _ in range(int(samples)):
        generate(int(length))
    return {"tokens_per_second": int(samples) * int(length) / (time.perf_counter() - start)}


def evaluate_nanogpt(checkpoint: str, split: str) -> dict[str, float]:
    """The loss of nanoGPT's network over a whole split, each target once, as nanogpt_lite evaluates."""
    model = _load_nanogpt(checkpoint)
    tokens = np.fromfile(split, dtype="<u2")
    block_size = model.config.block_size
    batches = batching.all_windows(tokens, rows=max(1, evaluation.EVAL_TOKENS // block_size), block_size=block_size)
    losses, counts = [], []
    with torch.inference_mode():
        for x, y in batches:
            losses.append(model(x, y.contiguous())[1].item())  # its `view` of the targets requires them contiguous
            counts.append(y.numel())
    return {"val_loss": float(np.average(losses, weights=counts))}


def record_nanogpt(path: str, *arguments: str) -> dict[str, int]:
    """Run nanoGPT's train.py; save its initial weights, the batches of the training steps, and their losses."""
    initial: dict[str, Tensor] = {}
    batches: list[batching.Batch] = []
    losses: list[float] = []
    model_class = _import_nanogpt_model().GPT

    def record_call(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, model_class):
            if not initial:  # the first call comes before the first step
                initial.update({name: tensor.clone() for name, tensor in module.state_dict().items()})
            if module.training:
                batches.append((inputs[0], inputs[1]))
                losses.append(output[1].item())

    handle = nn.modules.module.register_module_forward_hook(record_call)
    sys.argv = ["train.py", *arguments]
    runpy.run_path("train.py", run_name="__main__")
    handle.remove()
    torch.save({"initial": initial, "batches": batches, "losses": losses}, path)
    return {"steps": len(losses)}


def warm_up_tokens(device: str, length: int) -> int:
    """Tokens to generate before those of a sample are timed: on a GPU as many, since each length chooses kernels."""
    return WARM_UP if device == "cpu" else length


def _import_nanogpt_model() -> Any:
    """NanoGPT's model.py, from the current folder."""
    sys.path.insert(0, str(Path.cwd()))
    return import_module("model")


def _load_nanogpt(checkpoint: str) -> Any:
    """The network in a checkpoint of nanoGPT, in evaluation mode."""
    module = _import_nanogpt_model()
    # nanoGPT's format is torch.save's; weights_only executes no code
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    model = module.GPT(module.GPTConfig(**saved["model_args"]))
    model.load_state_dict(saved["model"])
    return model.eval()


class _TimedLines(io.StringIO):
    """A stream that notes at which time each line was complete."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[float, str]] = []
        self._rest = ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        self.lines += [(time.perf_counter(), line) for line in lines]
        return len(text)


def _peak_device_memory() -> float:
    """The most memory, in MB, that PyTorch has allocated on the GPU; 0 without one."""
    return torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else 0.0


FUNCTIONS: dict[str, Any] = {
    function.__name__: function
    for function in (
        start,
        train_lite,
        train_nanogpt,
        sample_lite,
        sample_nanogpt,
        evaluate_nanogpt,
        record_nanogpt,
    )
}

if __name__ == "__main__":
    print(json.dumps(FUNCTIONS[sys.argv[1]](*sys.argv[2:])))
