"""GPU types by Modal's names: what they cost, lists of them, and the line that reports the cost of a call."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

# Dollars per second, from https://modal.com/pricing as listed in May 2026. CPU and memory are charged in addition.
PRICES = {
    "T4": 0.000164,
    "L4": 0.000222,
    "A10": 0.000306,
    "L40S": 0.000542,
    "A100-40GB": 0.000583,
    "A100-80GB": 0.000694,
    "RTX-PRO-6000": 0.000842,
    "H100": 0.001097,
    "H200": 0.001261,
    "B200": 0.001736,
}


def gpu_order(gpus: str) -> list[str]:
    """The GPUs of a list such as "H100,A100-80GB:4", in the order of preference. `TYPE:n` is n GPUs."""
    return [gpu.strip() for gpu in gpus.split(",")]


def single_gpus(gpus: str) -> list[str]:
    """The same list with one GPU each: `A100-80GB:4` trains on four GPUs, but samples on one."""
    return [gpu.partition(":")[0] for gpu in gpu_order(gpus)]


def price_of(device_name: str) -> float | None:
    """Dollars per second of a GPU, by the name that PyTorch reports for it; None if it is not in the list."""
    longest_first = sorted(PRICES, key=len, reverse=True)  # an A100 must not match A10, nor an L40S match L4
    prices = (PRICES[gpu] for gpu in longest_first if all(word in device_name for word in gpu.split("-")))
    return next(prices, None)


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
        price = price_of(device_name)
        cost = f", about ${price * count * seconds:.2f}" if price else ""
        print(f"{max(count, 1)} x {device_name} for {seconds:.0f} s{cost}")
