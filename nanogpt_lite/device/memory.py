"""What the machine offers: device, number format, threads, seeds, signals. Differences between devices end here."""

import contextlib
import ctypes
import platform
from collections.abc import Iterator

import torch

# glibc's malloc.h: how much of the heap may lie idle, and below which size memory comes from the heap, in bytes
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MAX_HEAP_BLOCK, MIN_MMAP_BLOCK = 32 * 2**20, 2**17  # glibc takes no more; its own at first
# What PyTorch says when memory is used up; the last one is oneDNN's.
OOM_MESSAGES = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "_ALLOC_FAILED",
    "could not create a primitive",
)


@contextlib.contextmanager
def retain_heap() -> Iterator[None]:
    """Let the C library keep what is freed for what is asked for next, instead of giving it back to the system.

    Otherwise each step gets thousands of its pages anew, each filled with zeros first. Only glibc is known to need it,
    and only what it keeps is given back at the end: the sizes from which memory does not come from the heap, and from
    which the heap shrinks, stay where glibc itself would have raised them to at most.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    libc.mallopt(M_MMAP_THRESHOLD, MAX_HEAP_BLOCK)
    libc.mallopt(M_TRIM_THRESHOLD, 2**30)
    try:
        yield
    finally:
        libc.mallopt(M_TRIM_THRESHOLD, 2 * MAX_HEAP_BLOCK)
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
        libc.mallopt(M_MMAP_THRESHOLD, MIN_MMAP_BLOCK)
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """The C library, where it is GNU's."""
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the memory of the CPU or the GPU is used up."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in str(error) for words in OOM_MESSAGES)
