"""Triton compiles the kernels that Inductor generated to machine code for a GPU, without a GPU. Triton is needed."""

from collections.abc import Mapping
from types import SimpleNamespace
from unittest import mock

import torch
import torch._inductor.config as inductor_config
from torch._inductor.codecache import PyCodeCache
from torch._inductor.runtime import triton_helpers


def compile_kernels(sources: Mapping[str, str], capability: tuple[int, int]) -> dict[str, bytes]:
    """The ELF file with the machine code of each kernel, in its first configuration, within `fake_inductor`."""
    _use_driver(capability)
    with (
        inductor_config.patch(use_static_triton_launcher=False),  # it would load the code into the GPU
        mock.patch.object(triton_helpers, "set_driver_to_gpu", return_value=None),
    ):
        return {name: _compile(name, source) for name, source in sources.items()}


def _compile(name: str, source: str) -> bytes:
    kernel = getattr(PyCodeCache.load(source), name)
    result = kernel._precompile_config(kernel.configs[0])
    code: bytes = result.kernel.asm["cubin"]
    return code


def _use_driver(capability: tuple[int, int]) -> None:
    """Let Triton believe in a GPU, until the process ends."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    major, minor = capability
    driver.set_active(
        SimpleNamespace(
            get_current_target=lambda: GPUTarget("cuda", 10 * major + minor, 32),
            get_current_device=lambda: 0,
            get_active_torch_device=lambda: torch.device("cuda:0"),
            get_current_stream=lambda device=0: 0,
            get_device_interface=lambda: torch.cuda,
            get_device_capability=lambda device=0: capability,
        )
    )
