"""PyTorch's profiler over a few training steps, as a file for https://ui.perfetto.dev or chrome://tracing."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from nanogpt_lite.device.distributed import SINGLE_PROCESS, ProcessGroup

SKIPPED_STEPS = 3  # the first steps allocate, compile and fill caches
TRACED_STEPS = 5


@contextlib.contextmanager
def trace_steps(
    folder: str, device: torch.device, group: ProcessGroup = SINGLE_PROCESS
) -> Iterator[Callable[[], None]]:
    """Trace `TRACED_STEPS` steps into `folder`/trace.json: call what it yields after each step. "" traces nothing.

    Of several ranks each writes its own file, trace-RANK.json. `OSError` if the folder cannot be created.
    """
    if not folder:
        yield lambda: None
        return
    name = "trace.json" if group.world_size == 1 else f"trace-{group.rank}.json"
    path = Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(
        activities=activities,
        schedule=schedule(wait=SKIPPED_STEPS - 1, warmup=1, active=TRACED_STEPS, repeat=1),
        on_trace_ready=lambda traced: traced.export_chrome_trace(str(path)),
        record_shapes=True,
    ) as profiler:
        yield profiler.step
    if not path.exists():
        warnings.warn(
            f"{path} was not written: a trace takes {SKIPPED_STEPS + TRACED_STEPS} steps, and there were fewer",
            stacklevel=2,
        )
