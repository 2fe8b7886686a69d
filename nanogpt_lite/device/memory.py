"""Memory: keep what is freed for the next step, give it back to the system, recognise out-of-memory errors.

When training needs less memory, `trainer.step` takes fewer rows at a time.
"""

import contextlib
import ctypes
import platform
from collections.abc import Iterator

import torch

# Parameters of mallopt(3), from glibc's malloc.h: the free bytes at the end of the heap above which the heap shrinks,
# and the size in bytes from which a block is a memory map of its own instead of a part of the heap.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MAX_HEAP_BLOCK = 32 * 2**20  # bytes; the largest M_MMAP_THRESHOLD that glibc accepts on 64-bit systems
MIN_MMAP_BLOCK = 2**17  # bytes; glibc's initial M_MMAP_THRESHOLD
OOM_MESSAGES = (  # parts of PyTorch's messages when memory is used up
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "_ALLOC_FAILED",
    "could not create a primitive",  # from oneDNN
)


@contextlib.contextmanager
def retain_heap() -> Iterator[None]:
    """Let the C library keep freed memory for the next allocation, instead of giving it back to the system.

    Otherwise each step gets thousands of new pages from the system, which fills each with zeros. Only glibc is known to
    need this. At the end, free memory is given back. M_MMAP_THRESHOLD and M_TRIM_THRESHOLD are not reset: they stay at
    the highest values that glibc would have chosen by itself.
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
    """Give back the free memory that PyTorch and the C library hold for the device.

    On the CPU, from then on, large blocks are memory maps, which go back to the system as soon as they are freed. The
    heap can only shrink from its end, and a small block there prevents that.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    elif (libc := _glibc()) is not None:
        libc.mallopt(M_MMAP_THRESHOLD, MIN_MMAP_BLOCK)
        libc.malloc_trim(0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the memory of the CPU or the GPU is used up."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(part in str(error) for part in OOM_MESSAGES)


def _glibc() -> ctypes.CDLL | None:
    """The C library if it is glibc, else None."""
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
