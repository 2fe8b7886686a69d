"""What the machine offers: device, number format, threads, seeds, signals. Differences between devices end here."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch

from nanogpt_lite.device import distributed
from nanogpt_lite.errors import UserError

MAX_THREADS = 16  # small networks get slower, not faster, with more
MAX_THREADS_PER_CPU = 4  # the most that a processor is given
MIN_BF16_WIDTH = 96  # channels, on a CPU
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(name: str) -> torch.device:
    """The device of that name; "auto" is a CUDA GPU, else Apple's GPU, else the CPU. `UserError` if it is not there.

    "cuda" is a GPU of its own for each rank. Several ranks cannot share Apple's GPU.
    """
    if name == "auto":
        alone = distributed.world_size() == 1
        name = "cuda" if torch.cuda.is_available() else "mps" if alone and torch.backends.mps.is_available() else "cpu"
    if name == "cuda":
        name = distributed.local_device()
    elif name.startswith("cuda:") and distributed.world_size() > 1:
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
    return "bfloat16" if device.type == "cpu" and in_hardware and width >= MIN_BF16_WIDTH else "float32"


def resolve_threads(threads: int) -> int:
    """The number of CPU threads: what was asked for, or as many as PyTorch would take here (at most MOST_THREADS).

    `UserError` if so many could only wait for each other: where the system refuses a thread, OpenMP ends the process.
    """
    processors = os.cpu_count() or 1
    if threads > max(MAX_THREADS, MAX_THREADS_PER_CPU * processors):
        raise UserError(f"threads={threads} is too much for {processors} processors; give --threads {processors}")
    return threads or min(torch.get_num_threads(), MAX_THREADS)


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
def without_onednn(dtype: torch.dtype) -> Iterator[None]:
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
