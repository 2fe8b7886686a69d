"""What the machine offers: device, number format, threads, seeds, signals. Differences between devices end here."""

import contextlib
import hashlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def seeded(device: torch.device, *parts: int) -> Iterator[None]:
    """PyTorch's random numbers as a function of `parts` alone; its state outside is as before."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    devices = [device] if device.type == "cuda" else []
    mps_state = torch.mps.get_rng_state() if device.type == "mps" else None
    try:
        with torch.random.fork_rng(devices):
            _seed(int.from_bytes(digest[:8], "little") >> 1, device)
            yield
    finally:
        if mps_state is not None:
            torch.mps.set_rng_state(mps_state)


def _seed(number: int, device: torch.device) -> None:
    """Seed the generators that may be drawn from: `torch.manual_seed` goes through all that PyTorch knows of."""
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(number)
    elif device.type == "mps":
        torch.mps.manual_seed(number)
