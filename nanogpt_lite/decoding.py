"""Linear layers as a CPU multiplies them fastest by a few rows: the products of drawing text.

Optional: without it the same text comes more slowly. Measured on two cores (AMD EPYC with AVX-512, torch 2.13), a
layer of 384 -> 1536 in float32: `nn.Linear` takes 250 us for one row and 320 us for ten; in blocks it takes 75 and
250, packed 140 and 145.
"""

import torch
from torch import Tensor, nn

from nanogpt_lite.model import GPT

COLUMNS = 32  # of a block: more slow down a single row, fewer a long prompt


def prepare_for_decoding(model: GPT, rows: int) -> None:
    """Replace the linear layers of the blocks, in place, by such for `rows` texts at once.

    Only on a CPU in float32 or bfloat16: a GPU has no need. The logits change by rounding at most, but the network is
    no longer one to train or to save.
    """
    weight, onednn = model.lm_head.weight, torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    narrow = weight.dtype == torch.bfloat16
    if weight.device.type != "cpu" or not (weight.dtype == torch.float32 or (narrow and onednn)):
        return
    packs = onednn and (rows > 1 or narrow)
    for module in list(model.transformer.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, PackedLinear(child, rows) if packs else BlockedLinear(child))


class BlockedLinear(nn.Module):
    """A linear layer whose matrix is kept as `blocks` (N, C_in, COLUMNS), each contiguous: x @ block for each.

    Reads the memory in order and hands the threads equal shares, which one product of few rows does not.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.out_features = linear.out_features
        missing = -linear.out_features % COLUMNS  # filled up with zeros
        weight = nn.functional.pad(linear.weight.detach(), (0, 0, 0, missing))
        self.blocks = weight.view(-1, COLUMNS, linear.in_features).transpose(1, 2).contiguous()
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
