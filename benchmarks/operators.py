"""Which operators PyTorch calls: recorded by a dispatch mode, and what they would cost on a GPU.

A launch is an operator that is no view and does not only allocate: on a GPU it starts at least one kernel.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Self

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# No kernel: they allocate, or tell something about a tensor. Views are recognised by their schemas.
WITHOUT_KERNEL = {
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "_reshape_alias"),
    *("lift_fresh", "device", "is_pinned", "set_", "sym_size", "sym_numel", "sym_stride", "sym_storage_offset"),
}
# The processor waits for the device: a value is needed, or the shape of a result depends on one.
SYNCHRONIZING = {"_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2"}
SELECTING = {"embedding", "index", "index_select", "gather"}  # they read as much as they return


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor without its values."""

    dtype: str  # such as "float32"
    shape: tuple[int, ...]
    device: str  # the kind, such as "cuda"

    @property
    def num_bytes(self) -> int:
        """The size of its elements."""
        itemsize: int = getattr(torch, self.dtype).itemsize
        return prod(self.shape) * itemsize


@dataclass(frozen=True)
class Operator:
    """One call of an operator."""

    name: str  # without namespace and overload, such as "mm"
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    is_view: bool
    is_non_blocking: bool = False  # a copy for which the processor does not wait
    part: str = ""  # of a training step: "forward", "backward" or "update"
    compiled_bytes: int | None = None  # of a kernel in a compiled graph: the memory traffic that Inductor counts

    @property
    def is_launch(self) -> bool:
        """Whether a GPU starts a kernel for it."""
        is_on_gpu = self.is_compiled or any(tensor.device != "cpu" for tensor in (*self.inputs, *self.outputs))
        return is_on_gpu and not self.is_view and self.name not in WITHOUT_KERNEL | SYNCHRONIZING

    @property
    def is_compiled(self) -> bool:
        """Whether it is a kernel in a compiled graph."""
        return self.compiled_bytes is not None

    @property
    def num_bytes(self) -> int:
        """The memory that it reads and writes: each tensor once, or the rows it selects, or what Inductor counts."""
        if self.compiled_bytes is not None:
            return self.compiled_bytes
        if self.name in SELECTING:
            return 2 * sum(tensor.num_bytes for tensor in self.outputs)
        if self.name == "index_copy_":
            return 2 * self.inputs[-1].num_bytes
        return sum(tensor.num_bytes for tensor in (*self.inputs, *self.outputs))

    @property
    def is_copy_between_devices(self) -> bool:
        """Whether it copies from one device to another."""
        devices = {tensor.device for tensor in (*self.inputs, *self.outputs)}
        return self.name in ("_to_copy", "copy_") and len(devices) > 1

    @property
    def is_wait(self) -> bool:
        """Whether the processor waits for the GPU: it needs a value, or a copy of a tensor."""
        is_fetch = self.is_copy_between_devices and self.outputs[0].device == "cpu"
        return self.name in SYNCHRONIZING or (is_fetch and not self.is_non_blocking)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """The inverse of `dataclasses.asdict` and JSON."""
        inputs, outputs = (
            tuple(TensorInfo(tensor["dtype"], tuple(tensor["shape"]), tensor["device"]) for tensor in content[name])
            for name in ("inputs", "outputs")
        )
        return cls(**{**content, "inputs": inputs, "outputs": outputs})


class OperatorLog(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records all operators that are called within the `with` block, in order.

    On a device that computes nothing, `item()` has no value: it is `item_value`. `part` is that of the next operators.
    """

    def __init__(self, *, item_value: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators: list[Operator] = []
        self.item_value = item_value
        self.part = ""

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Let torch.compile compile within the `with` block, as without it."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        result: Any = self.item_value if name == "_local_scalar_dense" else func(*args, **kwargs)
        self.operators.append(
            Operator(
                name,
                _describe((args, kwargs)),
                _describe(result),
                is_view=_is_view(func._schema),
                is_non_blocking=_argument(func._schema, args, kwargs, "non_blocking") is True,
                part=self.part,
            )
        )
        return result

    def add_launches(self, launches: Sequence[Operator]) -> None:
        """Record the kernels of a compiled graph."""
        self.operators += [replace(launch, part=self.part) for launch in launches]

    @property
    def launches(self) -> list[Operator]:
        """The operators for which a GPU starts a kernel."""
        return [operator for operator in self.operators if operator.is_launch]


def _describe(values: Any) -> tuple[TensorInfo, ...]:
    return tuple(
        TensorInfo(str(value.dtype).removeprefix("torch."), tuple(value.shape), value.device.type)
        for value in tree_leaves(values)
        if isinstance(value, torch.Tensor)
    )


def _argument(schema: Any, args: Any, kwargs: Any, name: str) -> object:
    """An argument of an operator by its name; None if it is not given."""
    positional = {argument.name: value for argument, value in zip(schema.arguments, args, strict=False)}
    return {**positional, **kwargs}.get(name)


def _is_view(schema: Any) -> bool:
    """Whether a result shares the memory of an argument that is not written to."""
    aliases = [result.alias_info for result in schema.returns if result.alias_info is not None]
    return bool(aliases) and not any(alias.is_write for alias in aliases)


@dataclass(frozen=True)
class Gpu:
    """What a roofline needs to know: what a GPU reaches in practice, not the figures of its data sheet."""

    flops: float  # per second, in bfloat16
    bandwidth: float  # bytes per second
    launch: float  # seconds for the smallest kernel


MATMULS = ("mm", "bmm", "addmm", "baddbmm")
ATTENTION = ("_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention")


def roofline_seconds(operators: Sequence[Operator], gpu: Gpu) -> float:
    """An estimate of the time of operators, one after the other: each is bound by operations, memory, or its launch."""
    return sum(max(flops(o) / gpu.flops, o.num_bytes / gpu.bandwidth, gpu.launch) for o in operators if o.is_launch)


def flops(operator: Operator) -> float:
    """The floating-point operations of products and attention; 0 for others."""
    if operator.name in MATMULS:
        left, right = operator.inputs[-2].shape, operator.inputs[-1].shape
        return 2.0 * prod(left) * right[-1]
    name = operator.name.removesuffix("_backward")
    if name not in ATTENTION:
        return 0.0
    is_backward = operator.name != name
    query, key = (operator.inputs[number + is_backward].shape for number in (0, 1))
    *batch, length, head_size = query
    # two products, of which causality leaves half; five in the backward pass
    return 4 * prod(batch) * length * key[-2] * head_size / 2 * (2.5 if is_backward else 1)
