"""Device, number format, threads, seeds and signals, as far as they can be seen without a GPU."""

import os
import platform
import signal
import subprocess
import sys
import threading

import pytest
import torch

from nanogpt_lite.device import devices, memory, seeding, signals
from nanogpt_lite.errors import UserError

CPU = torch.device("cpu")


def test_auto_device_prefers_cuda_then_mps_then_cpu(monkeypatch):
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, device=None: empty(*shape))
    for cuda, mps, expected in [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert devices.resolve_device("auto").type == expected


@pytest.mark.parametrize("name", ["cuda:99", "tpu", "mps:7", "meta", "cpu:x"])
def test_a_device_that_is_not_there_is_an_error_with_a_remedy(name):
    with pytest.raises(UserError, match=r"device=.*(--device|give) .*cpu"):
        devices.resolve_device(name)


def test_dtype_comes_from_what_the_device_can_do(monkeypatch):
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert devices.resolve_dtype("auto", cuda, width=16) == "bfloat16"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert devices.resolve_dtype("auto", cuda, width=16) == "float16"
    assert devices.resolve_dtype("bfloat16", CPU, width=16) == "bfloat16"


@pytest.mark.parametrize(
    ("avx512", "amx", "width", "expected"),
    [(True, False, 128, "bfloat16"), (False, True, 128, "bfloat16"), (False, False, 128, "float32"),
     (True, True, 64, "float32")],
)  # fmt: skip
def test_a_cpu_takes_bfloat16_for_wide_networks_if_it_has_it(monkeypatch, avx512, amx, width, expected):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert devices.resolve_dtype("auto", CPU, width=width) == expected
    assert devices.resolve_dtype("auto", torch.device("mps"), width=width) == "float32"


@pytest.mark.parametrize(("there", "taken"), [(1, 1), (3, 3), (16, 16), (17, 16), (128, 16)])
def test_as_many_threads_as_there_are_but_not_more_than_help(monkeypatch, there, taken):
    monkeypatch.setattr(torch, "get_num_threads", lambda: there)
    assert devices.resolve_threads(0) == taken


def test_more_threads_than_processors_can_use_are_refused(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert [devices.resolve_threads(number) for number in (1, 16)] == [1, 16]
    with pytest.raises(UserError, match="threads=17 is too much for 2 processors; give `threads=2`"):
        devices.resolve_threads(17)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert devices.resolve_threads(256) == 256


def test_threads_are_set_inside_and_put_back():
    before = torch.get_num_threads()
    with devices.use_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    assert devices.resolve_threads(7) == 7


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives freed memory back so soon")
def test_freed_memory_is_kept_inside_and_given_back_after():
    code = """
import contextlib, resource, torch
from nanogpt_lite.device import devices
from nanogpt_lite.device import memory
from nanogpt_lite.device import seeding
from nanogpt_lite.device import signals
def faults(kept):
    with memory.retain_heap() if kept else contextlib.nullcontext():
        for number in range(13):
            if number == 3:
                before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            many = [torch.ones(4_000_000) for _ in range(8)]  # of 16 MB each
            del many
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
usual, before, kept = faults(False), resident(), faults(True)
print(usual, kept, before, resident())
"""
    # fixed, since glibc raises them by itself as it happens to need
    thresholds = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
    printed = subprocess.check_output([sys.executable, "-c", code], text=True, env={**os.environ, **thresholds})
    numbers = map(int, printed.split())
    usual, kept, before, after = numbers
    assert kept < usual / 20
    assert after < before + 20e6  # of 128


def test_seeded_numbers_depend_on_the_parts_alone():
    def draw(*parts):
        with seeding.seeded(CPU, *parts):
            return tuple(torch.rand(4).tolist())

    outside = torch.get_rng_state()
    drawn = {parts: draw(*parts) for parts in [(1, 2, 3), (1, 2, 4), (1, 3, 3), (2, 2, 3), (1, 23), (12, 3)]}
    assert len(set(drawn.values())) == len(drawn)
    assert all(draw(*parts) == numbers for parts, numbers in drawn.items())
    assert torch.equal(torch.get_rng_state(), outside)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_to_stop_and_the_second_interrupts(signum):
    before = signal.getsignal(signum)
    with signals.stop_on_signals() as stop:
        assert not stop.requested()
        os.kill(os.getpid(), signum)
        assert stop.requested()
        assert stop.signum == signum
        os.kill(os.getpid(), signal.SIGTERM)  # from somebody who has no patience; a person presses Ctrl-C
        assert stop.signum == signum
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signum) is before


def test_signals_are_left_alone_outside_the_main_thread():
    seen = []

    def elsewhere():
        with signals.stop_on_signals() as stop:
            seen.append(stop.requested())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [False]


def test_out_of_memory_is_told_from_other_faults():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert memory.is_out_of_memory(caught.value)
    assert memory.is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert memory.is_out_of_memory(MemoryError())
    assert memory.is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))
    on_windows = "[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: not enough memory: you tried to allocate"
    assert memory.is_out_of_memory(RuntimeError(on_windows))
    assert not memory.is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_onednn_is_off_for_a_few_rows_of_float32_and_on_again():
    assert torch.backends.mkldnn.enabled
    with devices.without_onednn(torch.float32):
        assert not torch.backends.mkldnn.enabled
    with devices.without_onednn(torch.bfloat16):
        assert torch.backends.mkldnn.enabled
    assert torch.backends.mkldnn.enabled
