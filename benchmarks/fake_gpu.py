"""Training and sampling on a GPU that computes nothing: tensors without values, and PyTorch's choices on CUDA.

Import it before `torch`, in a process of its own: it loads `fake_cuda`.
"""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import fake_cuda

fake_cuda.load()

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode  # noqa: E402

from nanogpt_lite.device import seeding  # noqa: E402

CAPABILITY = (8, 0)


@contextlib.contextmanager
def fake_gpu(capability: tuple[int, int] = CAPABILITY) -> Iterator[torch.device]:
    """Make tensors that have no values, and a GPU for them."""
    with contextlib.ExitStack() as stack:
        for name, value in {
            "torch.nn.functional.scaled_dot_product_attention": cuda_attention,
            "torch.nn.functional.rms_norm": cuda_rms_norm,
            "torch.utils._foreach_utils._foreach_supported_types": [torch.Tensor, torch.nn.Parameter, FakeTensor],
            "torch.cuda.get_device_capability": lambda device=None: capability,
            "torch.cuda.is_available": lambda: True,
            "torch.cuda.is_bf16_supported": lambda including_emulation=True: True,
            "torch.cuda.synchronize": lambda device=None: None,
            "torch.cuda.amp.common.amp_definitely_not_available": lambda: False,
            "torch.Tensor.pin_memory": lambda tensor: tensor,  # it would be a real one
            "torch.nn.Module.to": lambda module, device: module,  # a fake tensor does not move; it is made there
        }.items():
            stack.enter_context(mock.patch(name, value))
        stack.enter_context(mock.patch.object(seeding, "seeded", return_value=contextlib.nullcontext()))
        stack.enter_context(FakeTensorMode())
        yield torch.device("cuda:0")


def cuda_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
) -> Tensor:
    """Attention by the kernel that PyTorch chooses on CUDA without cuDNN's; a build without CUDA has no such choice."""
    if torch.is_autocast_enabled("cuda"):
        q, k, v = (tensor.to(torch.get_autocast_dtype("cuda")) for tensor in (q, k, v))
    if attn_mask is None and q.dtype in (torch.bfloat16, torch.float16):
        return _first(torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, dropout_p, is_causal))
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.where(attn_mask, torch.zeros((), dtype=q.dtype, device=q.device), float("-inf"))
        attn_mask = attn_mask.expand(q.size(0), q.size(1), q.size(2), k.size(2))
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    return _first(efficient(q, k, v, attn_mask, torch.is_grad_enabled(), dropout_p, is_causal))


class _FusedRMSNorm(torch.autograd.Function):
    """RMSNorm as CUDA computes it: one kernel forward, one backward. LayerNorm's read and write as much memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: list[int]) -> Tensor:
        y, mean, rstd = torch.ops.aten.native_layer_norm(x, shape, None, None, 1e-5)
        ctx.save_for_backward(x, mean, rstd)
        ctx.shape = shape
        return _first([y])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        x, mean, rstd = ctx.saved_tensors
        operator = torch.ops.aten.native_layer_norm_backward
        return _first(operator(grad, x, ctx.shape, mean, rstd, None, None, [True, False, False])), None


def cuda_rms_norm(
    x: Tensor, normalized_shape: list[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """RMSNorm by a fused kernel; a build without CUDA composes it of elementwise operators."""
    if torch.is_autocast_enabled("cuda"):
        x = x.float()
    y: Tensor = _FusedRMSNorm.apply(x, normalized_shape)  # type: ignore[no-untyped-call]
    return y if weight is None else y * weight


def _first(results: Any) -> Tensor:
    tensor: Tensor = results[0]
    return tensor
