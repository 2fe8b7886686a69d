"""Lists of GPU types by Modal's names, and the line that reports the cost of a call. The table is `device.gpus`."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from nanogpt_lite.device.gpus import find_gpu


def gpu_order(gpus: str) -> list[str]:
    """The GPUs of a list such as "H100,A100-80GB:4", in the order of preference. `TYPE:n` is n GPUs."""
    return [gpu.strip() for gpu in gpus.split(",")]


def single_gpus(gpus: str) -> list[str]:
    """The same list with one GPU each: `A100-80GB:4` trains on four GPUs, but samples on one."""
    return [gpu.partition(":")[0] for gpu in gpu_order(gpus)]


@contextmanager
def report_cost() -> Iterator[None]:
    """Print for how long the block used the GPUs of this container, and about what that costs."""
    import torch

    start = time.monotonic()
    try:
        yield
    finally:
        seconds, count = time.monotonic() - start, torch.cuda.device_count()
        device_name = torch.cuda.get_device_name() if count else "no GPU"
        gpu = find_gpu(device_name)
        price = gpu.dollars_per_second if gpu else None
        cost = f", about ${price * count * seconds:.2f}" if price else ""
        print(f"{max(count, 1)} x {device_name} for {seconds:.0f} s{cost}")
