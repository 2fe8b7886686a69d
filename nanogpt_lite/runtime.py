"""What the machine offers: device, number format, threads, seeds, signals. Differences between devices end here."""

import contextlib
import ctypes
import hashlib
import os
import platform
import signal
import threading
from collections.abc import Iterator
from typing import Any

import torch

from nanogpt_lite import ranks
from nanogpt_lite.errors import UserError

MOST_THREADS = 16  # small networks get slower, not faster, with more
THREADS_EACH = 4  # the most that a processor is given
BFLOAT16_FROM = 96  # channels, on a CPU
# glibc's malloc.h: how much of the heap may lie idle, and below which size memory comes from the heap, in bytes
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MOST_ON_HEAP, LEAST_OUTSIDE_HEAP = 32 * 2**20, 2**17  # glibc takes no more; its own at first
# What PyTorch says when memory is used up; the last one is oneDNN's.
NO_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "_ALLOC_FAILED",
    "could not create a primitive",
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(name: str) -> torch.device:
    """The device of that name; "auto" is a CUDA GPU, else Apple's GPU, else the CPU. `UserError` if it is not there.

    "cuda" is a GPU of its own for each rank. Several ranks cannot share Apple's GPU.
    """
    if name == "auto":
        alone = ranks.size() == 1
        name = "cuda" if torch.cuda.is_available() else "mps" if alone and torch.backends.mps.is_available() else "cpu"
    if name == "cuda":
        name = ranks.own_gpu()
    elif name.startswith("cuda:") and ranks.size() > 1:
        raise UserError(f"device={name!r} would be one GPU for all ranks; give --device cuda: each takes its own")
    if name.split(":")[0] not in ("cpu", "cuda", "mps"):
        raise UserError(f"device={name!r} is no kind that this program computes on; give cpu, cuda, cuda:N or mps")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0][:120]
        raise UserError(f"device={name!r} cannot be used here ({reason}); give --device auto or --device cpu") from None
    return device


def resolve_dtype(name: str, device: torch.device, *, width: int) -> str:
    """The number format for training: what was asked for, or what the processor's features suggest for "auto".

    `width` is the number of channels; on a CPU narrow products are over before bfloat16 could gain anything.
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        # Ampere and later multiply bfloat16 in hardware; earlier ones only emulate it
        return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float16"
    # the processor has to multiply bfloat16 in hardware: two features of x86 that PyTorch makes use of
    in_hardware = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if device.type == "cpu" and in_hardware and width >= BFLOAT16_FROM else "float32"


def resolve_threads(threads: int) -> int:
    """The number of CPU threads: what was asked for, or as many as PyTorch would take here (at most MOST_THREADS).

    `UserError` if so many could only wait for each other: where the system refuses a thread, OpenMP ends the process.
    """
    processors = os.cpu_count() or 1
    if threads > max(MOST_THREADS, THREADS_EACH * processors):
        raise UserError(f"threads={threads} is too much for {processors} processors; give --threads {processors}")
    return threads or min(torch.get_num_threads(), MOST_THREADS)


def device_name(device: torch.device) -> str:
    """What the device is called by its maker, for people and for the table of peak rates."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on the device; to a GPU it is copied while the program goes on."""
    if device.type == "cuda":
        return tensor.contiguous().pin_memory().to(device, non_blocking=True)  # only what is contiguous goes as it is
    return tensor.to(device)


def synchronize(device: torch.device) -> None:
    """Wait until the device has computed all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@contextlib.contextmanager
def use_threads(threads: int) -> Iterator[None]:
    """Compute with so many CPU threads. The number is part of what decides the last bits of a result."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def keep_memory() -> Iterator[None]:
    """Let the C library keep what is freed for what is asked for next, instead of giving it back to the system.

    Otherwise each step gets thousands of its pages anew, each filled with zeros first. Only glibc is known to need it,
    and only what it keeps is given back at the end: the sizes from which memory does not come from the heap, and from
    which the heap shrinks, stay where glibc itself would have raised them to at most.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    libc.mallopt(M_MMAP_THRESHOLD, MOST_ON_HEAP)
    libc.mallopt(M_TRIM_THRESHOLD, 2**30)
    try:
        yield
    finally:
        libc.mallopt(M_TRIM_THRESHOLD, 2 * MOST_ON_HEAP)
        libc.malloc_trim(0)


def free_memory(device: torch.device) -> None:
    """Give back what PyTorch and the C library keep of a device's memory for later use.

    From then on what is large comes from outside the C library's heap, and goes back at once when it is freed: a heap
    only shrinks from its end, where something small may lie.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    elif (libc := _glibc()) is not None:
        libc.mallopt(M_MMAP_THRESHOLD, LEAST_OUTSIDE_HEAP)
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """The C library, where it is GNU's."""
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


@contextlib.contextmanager
def few_rows(dtype: torch.dtype) -> Iterator[None]:
    """Compute on a few rows on the CPU without oneDNN, which in float32 takes longer to set up than to compute."""
    before = bool(torch.backends.mkldnn.enabled)
    torch.backends.mkldnn.enabled = before and dtype != torch.float32  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before  # type: ignore[assignment]


def autocast(device: torch.device, dtype: str) -> Any:
    """A context in which matrix products are computed in `dtype`; nothing changes for float32."""
    return torch.autocast(device.type, dtype=DTYPES[dtype], enabled=dtype != "float32")


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


class StopRequest:
    """Whether somebody asked to stop: `signum` is the signal, or None."""

    signum: int | None = None

    def made(self) -> bool:
        """Whether somebody asked."""
        return self.signum is not None


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn the first SIGINT, SIGTERM or SIGHUP (a lost terminal) into a request to stop; after it, SIGINT interrupts.

    Signals can be received in the main thread only; elsewhere the request is never made. A SIGHUP that is ignored, as
    under nohup, stays so.
    """
    request = StopRequest()

    def note(signum: int, frame: Any) -> None:
        if request.made() and signum == signal.SIGINT:
            raise KeyboardInterrupt
        request.signum = request.signum or signum  # a lost terminal sends more than one

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    numbers = [signal.SIGINT, signal.SIGTERM]
    hangup = getattr(signal, "SIGHUP", None)  # Windows has none
    if hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN:
        numbers.append(hangup)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield request
    finally:
        if hangup is not None and request.signum == hangup:
            before[hangup] = signal.SIG_IGN  # a second one must not cut short what is said at the end
        for number, handler in before.items():
            signal.signal(number, handler)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the memory of the CPU or the GPU is used up."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in str(error) for words in NO_MEMORY)
