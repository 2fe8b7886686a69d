"""Keeping freed memory, and recognising that memory is used up."""

import contextlib
import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nanogpt_lite.device import memory


@pytest.mark.linux("reads /proc/self/statm and counts page faults")
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
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    memory.trim_heap()
    return faults
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


@pytest.mark.linux("reads /proc/self/statm")
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's parameters are changed")
def test_blocks_freed_after_a_training_go_back_to_the_system_as_in_a_process_that_never_trained(text_file):
    code = """
import resource, sys, torch
import nanogpt_lite as ng
from tiny import TINY
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() // 2**20
if sys.argv[1] == "trained":
    ng.train("bottles.txt", **TINY)
elif sys.argv[1] == "left":
    records = ng.training("bottles.txt", **TINY)
    next(records), next(records)  # and keep the generator
for size, number in ((64, 1), (16, 10), (4, 40)):
    before = resident()
    blocks = [torch.ones(size * 2**18) for _ in range(number)]  # float32
    del blocks
    print(resident() - before)
"""
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    kept = {
        kind: subprocess.check_output(
            [sys.executable, "-c", code, kind], text=True, env={**os.environ, "PYTHONPATH": path}
        ).split()
        for kind in ("never", "trained", "left")
    }
    for kind in ("trained", "left"):
        for after_training, otherwise in zip(kept[kind], kept["never"], strict=True):
            assert int(after_training) <= max(int(otherwise), 0) + 8, kept  # MB, of 64 or 160


@pytest.mark.parametrize(
    ("environment", "mmap_threshold", "trim_threshold"),
    [
        ({}, 2**17, 2**17),
        ({"MALLOC_MMAP_THRESHOLD_": "4194304", "MALLOC_TRIM_THRESHOLD_": "0x800000"}, 2**22, 2**23),
        ({"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=65536:glibc.malloc.arena_max=2"}, 2**17, 2**16),
        ({"MALLOC_MMAP_THRESHOLD_": "-1", "MALLOC_TRIM_THRESHOLD_": "many"}, 2**17, 2**17),
    ],
)
@pytest.mark.parametrize("ends_with_error", [False, True])
def test_thresholds_of_malloc_are_set_back_to_those_of_the_start(
    monkeypatch, environment, mmap_threshold, trim_threshold, ends_with_error
):
    for name in ("GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    values: dict[int, int] = {}
    libc = SimpleNamespace(mallopt=values.__setitem__, malloc_trim=lambda pad: 1)
    monkeypatch.setattr(memory, "_glibc", lambda: libc)
    initial = {memory.M_MMAP_THRESHOLD: mmap_threshold, memory.M_TRIM_THRESHOLD: trim_threshold}
    with pytest.raises(KeyError) if ends_with_error else contextlib.nullcontext():
        with memory.retain_heap():
            assert values == {memory.M_MMAP_THRESHOLD: 2**25, memory.M_TRIM_THRESHOLD: 2**30}
            if ends_with_error:
                raise KeyError
    assert values == initial
    with memory.retain_heap():
        memory.free_memory(torch.device("cpu"))  # from then on freed blocks go back at once
        assert values == initial


def test_memory_is_left_alone_without_glibc(monkeypatch):
    monkeypatch.setattr(memory, "_glibc", lambda: None)
    with memory.retain_heap():
        memory.free_memory(torch.device("cpu"))
    memory.trim_heap()


def test_out_of_memory_errors_are_told_from_other_errors():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert memory.is_out_of_memory(caught.value)
    assert memory.is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert memory.is_out_of_memory(MemoryError())
    assert memory.is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))
    assert memory.is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling cublasCreate"))
    assert memory.is_out_of_memory(RuntimeError("cuDNN Frontend error: CUDA_ERROR_OUT_OF_MEMORY"))
    on_windows = "[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: not enough memory: you tried to allocate"
    assert memory.is_out_of_memory(RuntimeError(on_windows))
    assert not memory.is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_memory_is_freed_after_a_cuda_graph_that_failed(monkeypatch):
    """PyTorch may take the capture for one that goes on; other errors of the device are not hidden."""
    errors = [RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED"), RuntimeError("an illegal access")]
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: (_ for _ in ()).throw(errors.pop(0)))
    memory.free_memory(torch.device("cuda"))
    with pytest.raises(RuntimeError, match="an illegal access"):
        memory.free_memory(torch.device("cuda"))


class LargeCache:
    def __init__(self):
        self.content = ["large"]

    def clear(self):
        self.content.clear()


def test_a_cache_is_cleared_when_memory_is_short_as_long_as_it_exists():
    kept, gone = LargeCache(), LargeCache()
    for cache in (kept, gone):
        memory.clear_when_short(cache)
    content = gone.content
    del gone, cache
    memory.free_memory(torch.device("cpu"))
    assert not kept.content
    assert content


def test_a_computation_without_enough_memory_is_tried_once_more():
    errors: list[RuntimeError] = [torch.OutOfMemoryError("CUDA out of memory")]

    def compute():
        if errors:
            raise errors.pop()
        return 7

    assert memory.try_twice(compute, torch.device("cpu")) == 7
    errors += [torch.OutOfMemoryError("CUDA out of memory"), torch.OutOfMemoryError("CUDA out of memory")]
    with pytest.raises(torch.OutOfMemoryError):
        memory.try_twice(compute, torch.device("cpu"))
    assert not errors
    errors.append(RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes"):
        memory.try_twice(compute, torch.device("cpu"))
