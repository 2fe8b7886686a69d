"""A look inside a few steps: PyTorch's profiler, written for https://ui.perfetto.dev or chrome://tracing."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from nanogpt_lite.device import distributed

SKIPPED_STEPS = 3  # steps: the first ones allocate, compile and fill caches
TRACED_STEPS = 5  # that are written


@contextlib.contextmanager
def trace_steps(folder: str, device: torch.device) -> Iterator[Callable[[], None]]:
    """What to call after each step, so that some of them end up in `folder`/trace.json; nothing without a folder.

    Each rank writes a file of its own. `OSError` if the folder cannot be made.
    """
    if not folder:
        yield lambda: None
        return
    name = "trace.json" if distributed.world_size() == 1 else f"trace-{distributed.rank()}.json"
    path = Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(
        activities=activities,
        schedule=schedule(wait=SKIPPED_STEPS - 1, warmup=1, active=TRACED_STEPS, repeat=1),
        on_trace_ready=lambda done: done.export_chrome_trace(str(path)),
        record_shapes=True,
    ) as profiler:
        yield profiler.step
    if not path.exists():
        warnings.warn(f"no {path}: it takes {SKIPPED_STEPS + TRACED_STEPS} steps, and there were fewer", stacklevel=2)
