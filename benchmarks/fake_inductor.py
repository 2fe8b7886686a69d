"""torch.compile on the fake GPU: Dynamo traces and Inductor compiles as for a real one, down to the source of kernels.

A compiled graph then runs with tensors that have no values. What is recorded of it are the kernels that it launches,
each with the memory traffic that Inductor counts. Neither Triton nor a CUDA driver is needed, but for the machine code
Triton is. Import it after `fake_gpu`.

Three passes of Inductor compute or measure something on the GPU, and are left out, for each program alike: folding of
constants, padding of matrices, and the search for attention that is written out. All this uses what is internal to
PyTorch: see `TORCH_VERSION`.
"""

import ast
import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import torch
import torch._functorch.config as aot_config
import torch._inductor.config as inductor_config
from operators import Operator, OperatorLog, TensorInfo
from torch import Tensor, fx
from torch._dynamo.device_interface import CudaInterface
from torch._guards import detect_fake_mode
from torch._inductor import ir, metrics
from torch._inductor.codecache import PyCodeCache
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime import triton_helpers
from torch._inductor.scheduler import BaseSchedulerNode, ExternKernelSchedulerNode, NopKernelSchedulerNode
from torch.utils._python_dispatch import _disable_current_modes, _get_current_dispatch_mode_stack

TORCH_VERSION = "2.13"  # the version for which this was written
MULTIPROCESSORS = {(7, 5): 40, (8, 0): 108, (9, 0): 132, (10, 0): 148}  # of a T4, A100, H100 and B200


@dataclass
class Compilation:
    """What Inductor has compiled."""

    codes: list[str] = field(default_factory=list)  # the generated module of each graph, forward and backward each
    num_launches: list[int] = field(default_factory=list)  # of each graph
    num_generated: int = 0  # kernels that were generated, equal ones in a graph counted as often as they are used

    def kernel_sources(self) -> dict[str, str]:
        """The different Triton kernels, by their names: `NAME = async_compile.triton(NAME, SOURCE, …)`."""
        calls = [node for code in self.codes for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
        literals = [
            [str(argument.value) for argument in call.args if isinstance(argument, ast.Constant)]
            for call in calls
            if isinstance(call.func, ast.Attribute) and call.func.attr == "triton"
        ]
        return {name: source for name, source, *_ in literals}

    def machine_code(self) -> dict[str, bytes]:
        """The ELF file of each kernel, in its first configuration. Triton is needed; call it within `fake_inductor`."""
        with (
            inductor_config.patch(use_static_triton_launcher=False),  # it would load the code into the GPU
            mock.patch.object(triton_helpers, "set_driver_to_gpu", return_value=None),
        ):
            return {name: _assemble(name, source) for name, source in self.kernel_sources().items()}


@contextlib.contextmanager
def fake_inductor(capability: tuple[int, int]) -> Iterator[Compilation]:
    """Let torch.compile compile for a GPU of this capability, within `fake_gpu.fake_gpu`."""
    compilation = Compilation()
    with contextlib.ExitStack() as stack:
        for name, value in _functions_of_a_gpu(capability).items():
            stack.enter_context(mock.patch(name, value))
        stack.enter_context(
            mock.patch.object(GraphLowering, "compile_to_module", lambda graph: _compile(graph, compilation))
        )
        options = {"fx_graph_cache": False, "compile_threads": 1, "joint_graph_constant_folding": False}
        stack.enter_context(inductor_config.patch(options))
        stack.enter_context(aot_config.patch(enable_autograd_cache=False))
        stack.callback(torch._dynamo.reset)
        yield compilation


def _properties(capability: tuple[int, int]) -> SimpleNamespace:
    """In place of `torch.cuda.get_device_properties`."""
    major, minor = capability
    return SimpleNamespace(
        name=f"fake sm_{major}{minor}",
        major=major,
        minor=minor,
        multi_processor_count=MULTIPROCESSORS[capability],
        warp_size=32,
        total_memory=16 * 2**30,
        regs_per_multiprocessor=65536,
        max_threads_per_multi_processor=1024 if capability == (7, 5) else 2048,
        max_threads_per_block=1024,
        shared_memory_per_block=48 * 1024,
        shared_memory_per_block_optin=(64 if capability == (7, 5) else 163) * 1024,
        shared_memory_per_multiprocessor=(64 if capability == (7, 5) else 164) * 1024,
        L2_cache_size=40 * 2**20,
        gcnArchName="",
    )


def _functions_of_a_gpu(capability: tuple[int, int]) -> dict[str, Any]:
    """What Inductor asks PyTorch about the GPU, and the passes that are left out, by their full names."""
    properties = _properties(capability)
    interface: dict[str, Callable[..., object]] = {
        "get_device_properties": lambda device=None: properties,
        "Worker.get_device_properties": lambda device=None: properties,
        "get_compute_capability": lambda device=None: 10 * properties.major + properties.minor,
        "is_available": lambda: True,
        "current_device": lambda: 0,
        "is_triton_capable": lambda device=None: True,
        "raise_if_triton_unavailable": lambda device=None: None,
    }
    return {
        **{f"{CudaInterface.__module__}.CudaInterface.{name}": staticmethod(f) for name, f in interface.items()},
        "torch.cuda.get_device_properties": lambda device=None: properties,
        "torch.cuda.get_rng_state": lambda device=None: torch.empty(16, dtype=torch.uint8),
        "torch.cuda.set_rng_state": lambda state, device=None: None,
        "torch.cuda.device_count": lambda: 1,
        "torch.cuda.current_device": lambda: 0,
        "torch.cuda._lazy_init": lambda: None,
        "torch.cuda.is_initialized": lambda: True,
        "torch.cuda._exchange_device": lambda device: 0,
        "torch.cuda._maybe_exchange_device": lambda device: 0,
        "torch.utils._triton.triton_hash_with_backend": lambda: "",
        "torch._inductor.scheduler.has_triton": lambda *_: True,
        "torch._inductor.fx_passes.fuse_attention._sfdp_init": lambda device=None: None,
        "torch._inductor.fx_passes.pad_mm._pad_mm_init": lambda device=None: None,
        "torch._inductor.fx_passes.misc_patterns._misc_patterns_init": lambda device=None: None,
    }


def _compile(graph: GraphLowering, compilation: Compilation) -> SimpleNamespace:
    """Generate the code of a graph; returns what stands for the module with that code."""
    generated_before = metrics.generated_kernel_count
    compilation.codes.append(graph.codegen()[0].value)
    compilation.num_generated += metrics.generated_kernel_count - generated_before
    launches = [_describe(node) for node in graph.scheduler.nodes if _is_launch(node)]
    compilation.num_launches.append(len(launches))
    assert sum(launch.num_bytes for launch in launches) == graph.count_bytes()[0]

    def call(arguments: list[Tensor]) -> Any:
        inputs = list(arguments)
        arguments.clear()  # as generated code does, to free memory
        for log in _get_current_dispatch_mode_stack():
            if isinstance(log, OperatorLog):
                log.add_launches(launches)
        return _run(graph.orig_gm, inputs)

    return SimpleNamespace(call=call)


def _run(graph_module: fx.GraphModule, inputs: Sequence[Tensor]) -> Any:
    """Compute the outputs, which have no values, unseen by any log."""
    fake_mode = detect_fake_mode(inputs)
    assert fake_mode is not None, "there is a fake GPU"
    with _disable_current_modes(), fake_mode:
        return graph_module(*inputs)


def _assemble(name: str, source: str) -> bytes:
    kernel = getattr(PyCodeCache.load(source), name)
    code: bytes = kernel._precompile_config(kernel.configs[0]).kernel.asm["cubin"]
    return code


def _is_launch(node: BaseSchedulerNode) -> bool:
    """Whether generated code launches a kernel for a node: not if it only allocates, or is one of several results."""
    return not isinstance(node, NopKernelSchedulerNode) and not isinstance(node.node, ir.MultiOutput)


def _describe(node: BaseSchedulerNode) -> Operator:
    """A node of the scheduler as an operator: of PyTorch's, or a generated kernel."""
    num_bytes = node.get_read_write_buffers_sizes()
    if not isinstance(node, ExternKernelSchedulerNode):
        return Operator("triton", (), (), is_view=False, compiled_bytes=num_bytes)
    kernel = cast(ir.ExternKernel, node.node)
    overload = cast(torch._ops.OpOverload, kernel.op_overload)
    name = overload._schema.name.split("::")[1]
    return Operator(name, tuple(map(_tensor_info, kernel.inputs)), (), is_view=False, compiled_bytes=num_bytes)


def _tensor_info(buffer: Any) -> TensorInfo:
    return TensorInfo(str(buffer.get_dtype()).removeprefix("torch."), tuple(map(int, buffer.get_size())), "cuda")
