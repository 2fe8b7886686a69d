"""The device to compute on, the number format, the number of CPU threads, and copies to the device.

`resolve_…` turn an option with the value "auto" into what this machine can do. Memory is in `memory`, random numbers
are in `seeding`, several GPUs in `distributed`.
"""

import contextlib
import os
from collections.abc import Iterator

import torch

from nanogpt_lite.device.distributed import SINGLE_PROCESS, ProcessGroup
from nanogpt_lite.errors import UserError

MAX_THREADS = 16  # by default: small networks become slower with more
MAX_THREADS_PER_CPU = 4  # above MAX_THREADS, more are refused
MIN_BF16_WIDTH = 96  # channels; on a CPU, bfloat16 does not speed up narrower matrix products
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(name: str, group: ProcessGroup = SINGLE_PROCESS) -> torch.device:
    """The device of that name. "auto" is a CUDA GPU, else Apple's GPU (with one process), else the CPU.

    "cuda" is a different GPU for each rank of `group`. `UserError` if the machine has no such device.
    """
    if name == "auto":
        mps = group.world_size == 1 and torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    if name == "cuda":
        name = group.local_device()
    elif name.startswith("cuda:") and group.world_size > 1:
        raise UserError(f"device={name!r} is one GPU for all ranks; give `device='cuda'`, which is one for each")
    if name.split(":")[0] not in ("cpu", "cuda", "mps"):
        raise UserError(f"device={name!r} is not supported; give `device='cpu'`, or cuda, cuda:N or mps")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0][:120]
        raise UserError(
            f"device={name!r} cannot be used on this machine ({reason}); give `device='auto'` or `device='cpu'`"
        ) from None
    return device


def resolve_dtype(name: str, device: torch.device, *, width: int) -> str:
    """The number format for training: `name`, or for "auto" the fastest one that the hardware supports.

    `width` is the number of channels of the network (`n_embd`).
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        # compute capability 8.0 (Ampere) is the first that multiplies bfloat16 in hardware; older GPUs emulate it
        return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float16"
    # the two x86 extensions with which PyTorch multiplies bfloat16 in hardware
    in_hardware = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if device.type == "cpu" and in_hardware and width >= MIN_BF16_WIDTH else "float32"


def resolve_threads(threads: int) -> int:
    """The number of CPU threads: `threads`, or for 0 PyTorch's default, at most `MAX_THREADS`.

    `UserError` if the processors cannot run that many: where the system refuses a thread, OpenMP ends the process.
    """
    cpus = os.cpu_count() or 1
    if threads > max(MAX_THREADS, MAX_THREADS_PER_CPU * cpus):
        raise UserError(f"threads={threads} is too much for {cpus} processors; give `threads={cpus}`")
    return threads or min(torch.get_num_threads(), MAX_THREADS)


def device_name(device: torch.device) -> str:
    """The name to show, and to look up in `gpus`: the model of a GPU, else "cpu" or "mps"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on the device; the copy to a GPU is asynchronous."""
    if device.type == "cuda":
        # pinned memory, and a contiguous tensor: otherwise the copy would be synchronous
        return tensor.contiguous().pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def synchronize(device: torch.device) -> None:
    """Wait until all operations that were queued on the device are done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@contextlib.contextmanager
def use_threads(threads: int) -> Iterator[None]:
    """Compute with that number of CPU threads. It affects the last bits of results."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def without_onednn(dtype: torch.dtype) -> Iterator[None]:
    """Disable oneDNN for float32 on the CPU: for a matrix of few rows its set-up takes longer than the product."""
    before = bool(torch.backends.mkldnn.enabled)
    torch.backends.mkldnn.enabled = before and dtype != torch.float32  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before  # type: ignore[assignment]


def autocast(device: torch.device, dtype: str) -> torch.autocast:
    """A context in which matrix products are computed in `dtype`; for float32 it changes nothing."""
    return torch.autocast(device.type, dtype=DTYPES[dtype], enabled=dtype != "float32")
