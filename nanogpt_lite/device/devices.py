"""The device to compute on, the number format, PyTorch's settings for a computation, and copies to the device.

`resolve_…` turn an option with the value "auto" into what this machine can do. Memory is in `memory`, random numbers
are in `seeding`, several GPUs in `distributed`.
"""

import contextlib
import os
import platform
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from nanogpt_lite.device import fallbacks
from nanogpt_lite.device.distributed import SINGLE_PROCESS, ProcessGroup
from nanogpt_lite.device.fallbacks import FastPath
from nanogpt_lite.errors import UserError, first_line

MAX_THREADS = 16  # by default: small networks become slower with more
MAX_THREADS_PER_CPU = 4  # above MAX_THREADS, more are refused
BF16_CAPABILITY = (8, 0)  # compute capability (Ampere); older NVIDIA GPUs emulate bfloat16, which is slow
MIN_BF16_WIDTH = 96  # channels; on a CPU, bfloat16 does not speed up narrower matrix products
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(name: str, group: ProcessGroup = SINGLE_PROCESS) -> torch.device:
    """The device of that name. "auto" is a CUDA GPU, else Apple's GPU (with one process), else the CPU.

    "cuda" is a different GPU for each rank of `group`. `UserError` if the machine has no such device, or if it cannot
    compute; with "auto" and one process, that is a warning, and the CPU.
    """
    if name == "auto":
        mps = group.world_size == 1 and torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
        if name != "cpu" and group.world_size == 1:
            if not (problem := find_problem(torch.device(name))):
                return torch.device(name)
            # from here, not from the callers, of which a training has three: Python shows it once for each place
            warnings.warn(f"the GPU cannot be used ({problem}); using the CPU", stacklevel=1)
            name = "cpu"
    if name == "cuda":
        name = group.local_device()
    elif name.startswith("cuda:") and group.world_size > 1:
        raise UserError(f"device={name!r} is one GPU for all ranks; give `device='cuda'`, which is one for each")
    if name.split(":")[0] not in ("cpu", "cuda", "mps"):
        raise UserError(f"device={name!r} is not supported; give `device='cpu'`, or cuda, cuda:N or mps")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        problem = first_line(error)
    else:
        problem = find_problem(device)
    if problem:
        raise UserError(
            f"device={name!r} cannot be used on this machine ({problem}); give `device='auto'` or `device='cpu'`"
        )
    return device


def find_problem(device: torch.device) -> str:
    """Why a device cannot compute; empty if it can.

    A kernel is launched and its result is read back: a GPU that is too old, or too new, for this build of PyTorch
    allocates memory all the same.
    """
    try:
        result = torch.arange(4, device=device).sum().item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        return first_line(error) + _describe_kernels(device, error)
    return "" if result == 6 else f"0 + 1 + 2 + 3 is {result} on it"


def emulates_bfloat16(device: torch.device) -> bool:
    """Whether this is a GPU without hardware for bfloat16."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) < BF16_CAPABILITY


def resolve_dtype(name: str, device: torch.device, *, width: int) -> str:
    """The number format for training: `name`, or for "auto" the fastest one that the hardware supports.

    `width` is the number of channels of the network (`n_embd`).
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        return "float16" if emulates_bfloat16(device) else "bfloat16"
    is_wide = width >= MIN_BF16_WIDTH
    return "bfloat16" if device.type == "cpu" and is_wide and multiplies_bfloat16_faster() else "float32"


def has_fast_bfloat16(device: torch.device, dtype: str, *, width: int) -> bool:
    """Whether a training is in bfloat16, on a CPU that is faster in it. `dtype` and `width` as in `resolve_dtype`."""
    is_faster = device.type == "cpu" and resolve_dtype("auto", device, width=width) == "bfloat16"
    return is_faster and dtype in ("auto", "bfloat16")


def multiplies_bfloat16_faster() -> bool:
    """Whether matrix products of this processor are faster in bfloat16 than in float32.

    They are with AMX, and with the AVX512-BF16 of AMD. Intel's AVX512-BF16 without AMX has half the throughput of
    float32: on two cores of an Intel Xeon, torch 2.13, a product takes 1.5 to 1.9 times as long.
    """
    return torch.cpu._is_amx_tile_supported() or (torch.cpu._is_avx512_bf16_supported() and _is_amd())


def _is_amd() -> bool:
    try:
        description = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # no Linux
        description = platform.processor()
    return "AuthenticAMD" in description


def resolve_stored_dtype(stored: str, stored_device: str, device: torch.device, *, width: int) -> str:
    """The number format for a network that was trained with `stored` on a device of the kind `stored_device`.

    It stays, unless it was chosen for another kind of device, or for a GPU that has bfloat16 in hardware.
    """
    if device.type == stored_device and not (stored == "bfloat16" and emulates_bfloat16(device)):
        return stored
    return resolve_dtype("auto", device, width=width)


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
    if device.type == "cuda" and fallbacks.is_usable(FastPath.PINNED_MEMORY):
        # pinned memory, and a contiguous tensor: otherwise the copy would be synchronous
        return tensor.contiguous().pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def host_buffer(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor on the CPU of the same shape, into which `tensor` can be copied asynchronously from a GPU."""
    is_pinned = tensor.is_cuda and fallbacks.is_usable(FastPath.PINNED_MEMORY)
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=is_pinned)


def synchronize(device: torch.device) -> None:
    """Wait until all operations that were queued on the device are done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@contextlib.contextmanager
def compute_settings(threads: int, *, tf32: bool) -> Iterator[None]:
    """PyTorch's settings of this process while it computes; at the end they are those of before.

    `threads`: the number of CPU threads. `tf32`: on NVIDIA GPUs, round the factors of float32 products to 10 bits, for
    which tensor cores are several times faster. Both affect the last bits of results.

    Attention is computed by any of PyTorch's kernels but cuDNN's, which it prefers on newer GPUs. That one plans anew
    for each shape, generates wrong text on a B200 (pytorch/pytorch#193893), and gives gradients that are not numbers
    with a mask on an H100 (pytorch/pytorch#196678).
    """
    matmul = torch.backends.cuda.matmul
    has_cudnn_attention: bool = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
    threads_before, tf32_before = torch.get_num_threads(), matmul.fp32_precision == "tf32"
    torch.set_num_threads(threads)
    matmul.allow_tf32 = tf32  # not by `fp32_precision`, with which torch.get_float32_matmul_precision raises an error
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.set_num_threads(threads_before)
        matmul.allow_tf32 = tf32_before
        torch.backends.cuda.enable_cudnn_sdp(has_cudnn_attention)


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


def linear_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype of what a linear layer computes from `x`: autocast's, if it is on."""
    device_type = x.device.type
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else x.dtype


def _describe_kernels(device: torch.device, error: Exception) -> str:
    """For which GPUs this build of PyTorch has kernels, if it has none for this one; else an empty text."""
    if "no kernel image" not in str(error):
        return ""
    major, minor = torch.cuda.get_device_capability(device)
    return f": the GPU is an sm_{major}{minor}, and this PyTorch is built for {' '.join(torch.cuda.get_arch_list())}"
