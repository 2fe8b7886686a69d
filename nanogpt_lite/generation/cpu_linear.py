"""Linear layers as a CPU multiplies them fastest by a few rows: the products of drawing text.

Optional: without it the same text comes more slowly, since few rows wait for the matrices to come from memory.
Measured on two cores (AMD EPYC with AVX-512, torch 2.13), the 24 layers of a network of 10.65M parameters, in ms for
one row and for ten: `nn.Linear` 4.6 and 5.8; in blocks 1.5 and 3.8; packed 2.8 and 3.1, in bfloat16 1.4 and 1.8; in 8
bits 0.6 and 1.9.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanogpt_lite.errors import UserError
from nanogpt_lite.model.gpt import GPT

VECTOR_SIZE = 64  # numbers: the operator for 8 bits reads whole vectors, past the end of a row if it has to
BLOCK_COLUMNS = 32  # of a block: more slow down a single row, fewer a long prompt


def optimize_linears(model: GPT, rows: int) -> None:
    """Replace the linear layers of the blocks, in place, by such for `rows` texts at once.

    Only on a CPU in float32 or bfloat16: a GPU has no need. The logits change by rounding at most, but the network is
    no longer one to train or to save.
    """
    weight, onednn = model.lm_head.weight, torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    narrow = weight.dtype == torch.bfloat16
    if weight.device.type != "cpu" or not (weight.dtype == torch.float32 or (narrow and onednn)):
        return
    if onednn and (rows > 1 or narrow):
        _replace_linears(model, lambda linear: PackedLinear(linear, rows))
    else:
        _replace_linears(model, BlockedLinear)


def quantize_int8(model: GPT) -> None:
    """Replace the linear layers of the blocks, in place, by such with 8 bits a number. `UserError` but on a CPU."""
    device = model.lm_head.weight.device
    if device.type != "cpu":
        raise UserError(f"int8=True is for a CPU, and this is {device}; give --int8=False or --device cpu")
    _replace_linears(model, Int8Linear)


def _replace_linears(model: GPT, make: Callable[[nn.Linear], nn.Module]) -> None:
    for module in list(model.transformer.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, make(child))


class BlockedLinear(nn.Module):
    """A linear layer whose matrix is kept as `blocks` (N, C_in, COLUMNS), each contiguous: x @ block for each.

    Reads the memory in order and hands the threads equal shares, which one product of few rows does not.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.out_features = linear.out_features
        missing = -linear.out_features % BLOCK_COLUMNS  # filled up with zeros
        weight = F.pad(linear.weight.detach(), (0, 0, 0, missing))
        self.blocks = weight.view(-1, BLOCK_COLUMNS, linear.in_features).transpose(1, 2).contiguous()
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """x (..., C_in) to (..., C_out), as `nn.Linear`."""
        rows = x.reshape(1, -1, x.size(-1)).expand(self.blocks.size(0), -1, -1)
        y = torch.bmm(rows, self.blocks)  # (N, rows, COLUMNS)
        y = y.transpose(0, 1).reshape(*x.shape[:-1], -1)[..., : self.out_features]
        return y if self.bias is None else y + self.bias


class PackedLinear(nn.Module):
    """A linear layer whose matrix is kept in oneDNN's own order for products with `rows` rows.

    By the operators that PyTorch's compiler puts into a frozen network; its public layers pack anew at each call.
    """

    def __init__(self, linear: nn.Linear, rows: int) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), rows)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """x (..., C_in) to (..., C_out), as `nn.Linear`."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return y


class Int8Linear(nn.Module):
    """A linear layer whose matrix has 8 bits a number and a scale for each row (Dettmers et al. 2022, section 2).

    What it multiplies is rounded to bfloat16, which PyTorch's operator is fast in.
    """

    rounded: Tensor
    scales: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scales = weight.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / 127
        self.missing = -linear.in_features % VECTOR_SIZE
        rounded = (weight / scales[:, None]).round().to(torch.int8)
        self.register_buffer("rounded", F.pad(rounded, (0, self.missing)))
        self.register_buffer("scales", scales.bfloat16())
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """x (..., C_in) to (..., C_out), as `nn.Linear`."""
        rows = x.reshape(-1, x.size(-1)).bfloat16()
        rows = F.pad(rows, (0, self.missing)) if self.missing else rows
        y = torch._weight_int8pack_mm(rows, self.rounded, self.scales).to(x.dtype)
        y = y.view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias
