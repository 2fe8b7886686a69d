"""MLP activation functions: GELU, its tanh approximation, and squared ReLU with its own backward pass."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import BackwardCFunction, FunctionCtx, once_differentiable


def squared_relu(x: Tensor) -> Tensor:
    """Return relu(x)**2, elementwise (So et al. 2021, Primer)."""
    y: Tensor = _SquaredReLU.apply(x)  # type: ignore[no-untyped-call]
    return y


class _SquaredReLU(torch.autograd.Function):
    """Squared ReLU with a backward pass that reads and writes half as much memory as autograd's own."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        positive = x.relu()
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    @once_differentiable
    def backward(ctx: BackwardCFunction, grad_output: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        return torch.mul(grad_output, positive).mul_(2)  # d/dx relu(x)**2 = 2 relu(x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,  # Hendrycks and Gimpel 2016, section 2
    "gelu_tanh": partial(F.gelu, approximate="tanh"),  # the approximation that GPT-2 was trained with
    "relu2": squared_relu,
}
