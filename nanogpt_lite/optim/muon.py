"""Muon: orthogonalised momentum updates (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).

The update of a matrix is the momentum of its gradient with all singular values brought close to one (by a Newton-Schulz
iteration), so that all directions are learned at about the same rate. It is meant for the matrices inside the blocks;
embeddings, the output matrix and vectors are updated by AdamW.
"""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nanogpt_lite.device import fallbacks
from nanogpt_lite.device.fallbacks import FastPath
from nanogpt_lite.optim.adamw import AdamW, ParamGroup

# The coefficients a, b, c of the polynomial a x + b x^3 + c x^5. Five iterations bring singular values in (0, 1]
# close to one. Both from the page above.
NEWTON_SCHULZ_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


class Muon(AdamW):
    """Muon for parameter groups that have a `muon_momentum`, AdamW for the others.

    All parameters of a Muon group are matrices. Their state is one "momentum_buffer" each. The Newton-Schulz iteration
    is computed in `newton_schulz_dtype`, for which 16 bits are precise enough.
    """

    def __init__(self, groups: list[ParamGroup], *, newton_schulz_dtype: torch.dtype) -> None:
        super().__init__(groups)
        self.newton_schulz_dtype = newton_schulz_dtype

    def _step_group(self, group: ParamGroup) -> None:
        if "muon_momentum" in group:
            self._step_muon_group(group, momentum=group["muon_momentum"])
        else:
            super()._step_group(group)

    def _step_muon_group(self, group: ParamGroup, *, momentum: float) -> None:
        parameters: list[Tensor] = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not parameters:
            return
        _scale(parameters, 1 - group["lr"] * group["weight_decay"])
        momenta = self._nesterov_momenta(parameters, momentum)
        by_shape = defaultdict(list)  # matrices of one shape are stacked: a few large operations, not many small ones
        for index, parameter in enumerate(parameters):
            by_shape[parameter.shape].append(index)
        for (rows, columns), indices in by_shape.items():
            updates = self._orthogonalize(torch.stack([momenta[index] for index in indices])).unbind()
            rate = group["lr"] * max(1.0, rows / columns) ** 0.5  # Jordan's factor for the shape
            _add([parameters[index] for index in indices], updates, -rate)

    def state_shapes(self, group: ParamGroup, parameter: nn.Parameter) -> dict[str, torch.Size]:
        """The shape of each state tensor of a parameter in `group`, by name."""
        is_muon = "muon_momentum" in group
        return {"momentum_buffer": parameter.shape} if is_muon else super().state_shapes(group, parameter)

    def _nesterov_momenta(self, parameters: list[Tensor], momentum: float) -> tuple[Tensor, ...]:
        """Update the momentum buffers with the gradients, and return the Nesterov momentum of each parameter."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        if not fallbacks.is_usable(FastPath.FOREACH):
            for buffer, gradient in zip(buffers, gradients, strict=True):
                buffer.lerp_(gradient, 1 - momentum)
            return tuple(gradient.lerp(buffer, momentum) for buffer, gradient in zip(buffers, gradients, strict=True))
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        return torch._foreach_lerp(gradients, buffers, momentum)

    def _orthogonalize(self, momenta: Tensor) -> Tensor:
        """The updates for stacked momenta (N, rows, columns), in their dtype."""
        matrices = momenta
        if self.newton_schulz_dtype == torch.float16:  # its smallest number is larger than many a gradient
            matrices = momenta / (torch.linalg.matrix_norm(momenta, keepdim=True) + 1e-30)
        return orthogonalize(matrices.to(self.newton_schulz_dtype)).to(momenta.dtype)


def orthogonalize(matrices: Tensor) -> Tensor:
    """Return matrices (N, rows, columns) with the same singular vectors and singular values of about 0.7 to 1.2.

    Values that are very small compared with the largest one are raised only in part.
    """
    a, b, c = NEWTON_SCHULZ_COEFFICIENTS
    is_wide = matrices.size(-2) <= matrices.size(-1)
    x = matrices if is_wide else matrices.mT  # the product x @ x.mT is then the smaller of the two
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)  # all singular values are now at most one
    for _ in range(NEWTON_SCHULZ_STEPS):
        square = torch.bmm(x, x.mT)
        square = torch.baddbmm(square, square, square, beta=b, alpha=c)  # b square + c square^2, in one kernel
        x = torch.baddbmm(x, square, x, beta=a)  # a x + b (x x^T) x + c (x x^T)^2 x
    return x if is_wide else x.mT


def _scale(tensors: list[Tensor], factor: float) -> None:
    if fallbacks.is_usable(FastPath.FOREACH):
        torch._foreach_mul_(tensors, factor)
    else:
        for tensor in tensors:
            tensor.mul_(factor)


def _add(tensors: list[Tensor], others: Sequence[Tensor], factor: float) -> None:
    if fallbacks.is_usable(FastPath.FOREACH):
        torch._foreach_add_(tensors, [*others], alpha=factor)
    else:
        for tensor, other in zip(tensors, others, strict=True):
            tensor.add_(other, alpha=factor)
