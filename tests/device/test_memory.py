"""Keeping freed memory, and recognising that memory is used up."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from nanogpt_lite.device import memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="retain_heap has an effect with glibc only")
def test_retain_heap_keeps_freed_memory_and_returns_it_at_the_end():
    code = """
import contextlib, resource, torch
from nanogpt_lite.device import memory
def page_faults(retain):
    with memory.retain_heap() if retain else contextlib.nullcontext():
        for number in range(13):
            if number == 3:
                before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            tensors = [torch.ones(4_000_000) for _ in range(8)]  # of 16 MB each
            del tensors
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
usual, before, retained = page_faults(False), resident(), page_faults(True)
print(usual, retained, before, resident())
"""
    # fixed, since otherwise glibc adapts them to the program
    thresholds = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
    printed = subprocess.check_output([sys.executable, "-c", code], text=True, env={**os.environ, **thresholds})
    usual_faults, retained_faults, resident_before, resident_after = map(int, printed.split())
    assert retained_faults < usual_faults / 20
    assert resident_after < resident_before + 20e6  # bytes, of 128e6 allocated


def test_out_of_memory_errors_are_told_from_other_errors():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert memory.is_out_of_memory(caught.value)
    assert memory.is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert memory.is_out_of_memory(MemoryError())
    assert memory.is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))
    on_windows = "[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: not enough memory: you tried to allocate"
    assert memory.is_out_of_memory(RuntimeError(on_windows))
    assert not memory.is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
