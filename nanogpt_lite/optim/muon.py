"""Muon: orthogonalised momentum updates (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).

The update of a matrix is the momentum of its gradient with all singular values brought close to one (by a Newton-Schulz
iteration), so that all directions are learned at about the same rate. It is meant for the matrices inside the blocks;
embeddings, the output matrix and vectors are updated by AdamW.
"""

from collections import defaultdict

import torch
from torch import Tensor, nn

from nanogpt_lite.optim.adamw import AdamW, ParamGroup

# The coefficients a, b, c of the polynomial a x + b x^3 + c x^5. Five iterations bring singular values in (0, 1]
# close to one. Both from the page above.
NEWTON_SCHULZ_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


class Muon(AdamW):
    """Muon for parameter groups that have a `muon_momentum`, AdamW for the others.

    All parameters of a Muon group are matrices. Their state is one "momentum_buffer" each. The Newton-Schulz iteration
    is computed in `newton_schulz_dtype`, for which bfloat16 is precise enough.
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
        by_shape = defaultdict(list)  # matrices of one shape are stacked: a few large operations, not many small ones
        for parameter in group["params"]:
            if parameter.grad is not None:
                by_shape[parameter.shape].append(parameter)
        for (rows, columns), parameters in by_shape.items():
            momenta = torch.stack([self._nesterov_momentum(parameter, momentum) for parameter in parameters])
            updates = orthogonalize(momenta.to(self.newton_schulz_dtype)).to(momenta.dtype)
            rate = group["lr"] * max(1.0, rows / columns) ** 0.5  # Jordan's factor for the shape
            for parameter, update in zip(parameters, updates, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-rate)

    def state_shapes(self, group: ParamGroup, parameter: nn.Parameter) -> dict[str, torch.Size]:
        """The shape of each state tensor of a parameter in `group`, by name."""
        is_muon = "muon_momentum" in group
        return {"momentum_buffer": parameter.shape} if is_muon else super().state_shapes(group, parameter)

    def _nesterov_momentum(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        """Update the momentum buffer with the gradient, and return the Nesterov momentum."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer = state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(buffer, momentum)


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
