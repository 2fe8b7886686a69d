"""For how long a call has used the GPUs of its containers, over all attempts, and about what that costs."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from nanogpt_lite import files
from nanogpt_lite.cloud.calls import Call
from nanogpt_lite.cloud.client.rental import GPURequest
from nanogpt_lite.cloud.client.volume_names import GPU_TIME_FILE
from nanogpt_lite.device.gpus import find_gpu

HEARTBEAT = 15.0  # seconds between two notes of the time used: a crash loses no more


class GPUTime:
    """The time of one call, from the construction of this object on, and of the attempts before."""

    def __init__(self, earlier_seconds: float = 0.0, attempts: int = 1) -> None:
        """`earlier_seconds`: of the attempts before this one. `attempts`: their number, with this one."""
        self.attempts = attempts
        self._earlier_seconds, self._start = earlier_seconds, time.monotonic()
        self._count = torch.cuda.device_count()
        self._device = torch.cuda.get_device_name() if self._count else ""

    @property
    def seconds(self) -> float:
        """Seconds over all attempts so far."""
        return self._earlier_seconds + time.monotonic() - self._start

    @property
    def modal_type(self) -> str:
        """Modal's name of the GPU; empty if Modal does not have it."""
        gpu = find_gpu(self._device)
        return gpu.modal_type if gpu else ""

    def __str__(self) -> str:
        seconds = self.seconds
        attempts = f" in {self.attempts} attempts" if self.attempts > 1 else ""
        rate = GPURequest(self.modal_type, self._count).dollars_per_second if self.modal_type else None
        cost = f", about ${rate * seconds:.2f}" if rate else ""
        return f"{max(self._count, 1)} x {self._device or 'no GPU'} for {seconds:.0f} s{attempts}{cost}"

    def write(self, folder: Path, call_id: str) -> None:
        """Write the time of this call into the file of a run, beside that of the calls that trained it before."""
        path = folder / GPU_TIME_FILE
        stored = files.read_json(path)
        calls = stored if isinstance(stored, dict) else {}
        calls[call_id] = {
            "gpu": self.modal_type or self._device,
            "count": self._count,
            "seconds": round(self.seconds, 1),
            "attempts": self.attempts,
        }
        files.write_json(path, calls)


@contextmanager
def count_attempt(call: Call) -> Iterator[GPUTime]:
    """Count the time of the block as that of an attempt, and print it.

    It is noted again and again, because a crash may end it.
    """
    seconds, attempts = call.used_time()
    gpu_time = GPUTime(seconds, attempts + 1)
    ended = threading.Event()

    def note() -> None:
        try:
            call.note_time(gpu_time.seconds, gpu_time.attempts)
        except Exception as error:  # of any kind, from Modal's client: a training must not end because of a count
            print(f"warning: the time of this call cannot be noted ({type(error).__name__}: {error})")

    def note_regularly() -> None:
        while not ended.wait(HEARTBEAT):
            note()

    note()
    thread = threading.Thread(target=note_regularly, daemon=True)
    thread.start()
    try:
        yield gpu_time
    finally:
        ended.set()
        thread.join()
        note()
        print(gpu_time)


@contextmanager
def report_gpu_time() -> Iterator[None]:
    """Print for how long the block used the GPUs of this container, and about what that costs."""
    gpu_time = GPUTime()
    try:
        yield
    finally:
        print(gpu_time)
