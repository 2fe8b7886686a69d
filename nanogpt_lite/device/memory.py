"""Memory: keep what is freed for the next step, give it back to the system, recognise out-of-memory errors.

When training needs less memory, `trainer.step` takes fewer rows at a time.
"""

import contextlib
import ctypes
import os
import platform
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar
from weakref import WeakSet

import torch

T = TypeVar("T")

# Parameters of mallopt(3), from glibc's malloc.h: the free bytes at the end of the heap above which the heap shrinks,
# and the size in bytes from which a block is a memory map of its own instead of a part of the heap.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
RETAINED_BYTES = 2**30  # M_TRIM_THRESHOLD while memory is retained
MAX_HEAP_BLOCK = 32 * 2**20  # bytes; the largest M_MMAP_THRESHOLD that glibc accepts on 64-bit systems
INITIAL_THRESHOLD = 2**17  # bytes; what glibc starts with, for both parameters
OOM_MESSAGES = (  # parts of PyTorch's messages when memory is used up
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "OUT_OF_MEMORY",  # CUDA_ERROR_OUT_OF_MEMORY, from cuDNN
    "_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",  # there was no memory for cuBLAS
    "could not create a primitive",  # from oneDNN
)


@contextlib.contextmanager
def retain_heap() -> Iterator[None]:
    """Let the C library keep freed memory for the next allocation, instead of giving it back to the system.

    Otherwise each step gets thousands of new pages from the system, which fills each with zeros. Only glibc is known to
    need this. At the end both parameters get the values that the process started with: freed blocks of 128 kB or more
    go back to the system again. `trim_heap` gives back what is free by then.

    glibc cannot tell their present values. From the first call of mallopt on it also no longer adapts them to the
    program (`no_dyn_threshold` in malloc.c), which cannot be undone. So blocks that are often allocated and freed later
    are memory maps each time, which is slower than where glibc adapts: use `retain_heap` around such a computation.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    libc.mallopt(M_MMAP_THRESHOLD, MAX_HEAP_BLOCK)
    libc.mallopt(M_TRIM_THRESHOLD, RETAINED_BYTES)
    try:
        yield
    finally:
        _restore_thresholds(libc)


def trim_heap() -> None:
    """Give the free memory of the heap back to the system, also pages between blocks in use. Only with glibc."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


class Cache(Protocol):
    """Holds memory for later calls, which can do without it."""

    def clear(self) -> None:
        """Free the memory."""


_caches: WeakSet[Cache] = WeakSet()


def clear_when_short(cache: Cache) -> None:
    """Let `free_memory` clear a cache, as long as it exists."""
    _caches.add(cache)


def free_memory(device: torch.device) -> None:
    """Clear caches (`clear_when_short`), and give back the free memory that PyTorch and the C library hold.

    On the CPU, from then on until the next `retain_heap`, large blocks are memory maps, which go back to the system as
    soon as they are freed. The heap can only shrink from its end, and a small block there prevents that.
    """
    for cache in list(_caches):
        cache.clear()
    if device.type == "cuda":
        try:
            torch.cuda.empty_cache()
        except RuntimeError as error:
            if "captures_underway" not in str(error):  # a CUDA graph that failed, for PyTorch < 2.13: pytorch#180395
                raise
    elif device.type == "mps":
        torch.mps.empty_cache()
    elif (libc := _glibc()) is not None:
        _restore_thresholds(libc)
        libc.malloc_trim(0)


def try_twice(compute: Callable[[], T], device: torch.device) -> T:
    """What `compute` returns; if memory is not enough, that of a second call, after `free_memory`."""
    try:
        return compute()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    free_memory(device)
    return compute()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that the memory of the CPU or the GPU is used up."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(part in str(error) for part in OOM_MESSAGES)


def _restore_thresholds(libc: ctypes.CDLL) -> None:
    """Set both parameters as glibc did when the process started."""
    for parameter, name in ((M_MMAP_THRESHOLD, "mmap_threshold"), (M_TRIM_THRESHOLD, "trim_threshold")):
        libc.mallopt(parameter, _initial_threshold(name))


def _initial_threshold(name: str) -> int:
    """The value of a parameter at the start of the process, which the environment may set (mallopt(3), ld.so(8))."""
    tunables = dict(pair.partition("=")[::2] for pair in os.environ.get("GLIBC_TUNABLES", "").split(":"))
    text = tunables.get(f"glibc.malloc.{name}") or os.environ.get(f"MALLOC_{name.upper()}_", "")
    try:
        value = int(text, base=0)
    except ValueError:
        return INITIAL_THRESHOLD
    return value if 0 <= value < 2**31 else INITIAL_THRESHOLD  # mallopt takes an int


def _glibc() -> ctypes.CDLL | None:
    """The C library if it is glibc, else None."""
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
