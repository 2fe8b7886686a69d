"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon): each matrix moves by an orthogonal one.

The momentum of a matrix's gradient is replaced by the nearest matrix whose singular values are all one, so that no
direction is left behind. What is no matrix of a block, embeddings and the output among them, is left to AdamW.
"""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from nanogpt_lite.optim.adamw import AdamW

# of a polynomial that brings singular values in (0, 1] near one in few steps; from the page above
NEWTON_SCHULZ_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


class Muon(AdamW):
    """AdamW, but Muon for parameter groups with a `muon_momentum`. All parameters of such a group are matrices.

    `products` is the number format of its matrix products; bfloat16 is enough for them.
    """

    def __init__(self, groups: list[dict[str, Any]], *, products: torch.dtype) -> None:
        super().__init__(groups)
        self.products = products

    def _step_group(self, group: dict[str, Any]) -> None:
        if "muon_momentum" in group:
            self._move_matrices(group)
        else:
            super()._step_group(group)

    def _move_matrices(self, group: dict[str, Any]) -> None:
        alike = defaultdict(list)  # matrices of one shape go together: few large operations instead of many small ones
        for parameter in group["params"]:
            if parameter.grad is not None:
                alike[parameter.shape].append(parameter)
        for (rows, columns), parameters in alike.items():
            momenta = torch.stack([self._momentum(parameter, group) for parameter in parameters])
            updates = orthogonalize(momenta.to(self.products)).to(momenta.dtype)
            rate = group["lr"] * max(1.0, rows / columns) ** 0.5
            for parameter, update in zip(parameters, updates, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-rate)

    def _momentum(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        """Nesterov's momentum of a gradient, which is taken in."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["muon_momentum"])
        return parameter.grad.lerp(buffer, group["muon_momentum"])


def orthogonalize(matrices: Tensor) -> Tensor:
    """Each matrix (number, rows, columns) with its singular values brought to between about 0.7 and 1.2."""
    a, b, c = NEWTON_SCHULZ_COEFFICIENTS
    wide = matrices.size(-2) <= matrices.size(-1)
    x = matrices if wide else matrices.mT  # then x @ x.mT is the smaller product
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        square = torch.bmm(x, x.mT)
        square = torch.baddbmm(square, square, square, beta=b, alpha=c)  # b square + c square^2, in one kernel
        x = torch.baddbmm(x, square, x, beta=a)
    return x if wide else x.mT
