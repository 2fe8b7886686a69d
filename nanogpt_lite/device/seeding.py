"""Random numbers as a function of integers such as (seed, step, micro-batch), independent of PyTorch's global state.

`trainer.step` seeds the dropout masks with it, `trainer.state` the initial weights. The random numbers of batches are
NumPy's (`data.batching`).
"""

import contextlib
import hashlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def seeded(device: torch.device, *parts: int) -> Iterator[None]:
    """Seed PyTorch's generators of the CPU and of `device` with `parts`; restore their state at the end."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    devices = [device] if device.type == "cuda" else []
    mps_state = torch.mps.get_rng_state() if device.type == "mps" else None  # fork_rng leaves MPS alone
    try:
        with torch.random.fork_rng(devices):
            _seed(int.from_bytes(digest[:8], "little") >> 1, device)
            yield
    finally:
        if mps_state is not None:
            torch.mps.set_rng_state(mps_state)


def replay_mps() -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    """Two contexts, the second of which draws the same random numbers on Apple's GPU as the first.

    The second one then restores the state of its generator. `torch.utils.checkpoint` takes this as `context_fn`.
    """
    state = torch.mps.get_rng_state()

    @contextlib.contextmanager
    def replay() -> Iterator[None]:
        state_before = torch.mps.get_rng_state()
        torch.mps.set_rng_state(state)
        try:
            yield
        finally:
            torch.mps.set_rng_state(state_before)

    return contextlib.nullcontext(), replay()


def _seed(number: int, device: torch.device) -> None:
    """Seed the two generators only: `torch.manual_seed` would seed those of all devices, which takes longer."""
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(number)
    elif device.type == "mps":
        torch.mps.manual_seed(number)
