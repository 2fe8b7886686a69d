"""Linear layers as a CPU multiplies them fastest by a few rows: the products of drawing text.

Optional: without it the same text comes more slowly. Measured on two cores (AMD EPYC with AVX-512, torch 2.13,
MKL), 384 -> 1536 in float32: one row takes 75 us instead of 250, ten take 250 instead of 320, 128 the same.
"""

import torch
from torch import Tensor, nn

from nanogpt_lite.model import GPT

COLUMNS = 32  # of a block: fewer slow down long prompts, more slow down single rows


def prepare_for_decoding(model: GPT) -> None:
    """Replace the linear layers of the blocks, in place, if the network is on the CPU and in float32.

    Its logits change by rounding at most. Its state_dict changes: it is no longer a network to train or to save.
    """
    weight = model.lm_head.weight
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return  # a GPU has no need, and PyTorch multiplies blocks of lower precision more slowly
    for module in list(model.transformer.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, BlockedLinear(child))


class BlockedLinear(nn.Module):
    """A linear layer whose matrix is kept as `blocks` (N, C_in, COLUMNS), each contiguous: x @ block for each.

    Reads the memory in order, and hands the threads equal shares, which one product of few rows does not.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.out_features = linear.out_features
        missing = -linear.out_features % COLUMNS  # filled up with zeros
        weight = nn.functional.pad(linear.weight.detach(), (0, 0, 0, missing))
        self.register_buffer("blocks", weight.view(-1, COLUMNS, linear.in_features).transpose(1, 2).contiguous())
        self.bias = linear.bias

    blocks: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """x (..., C_in) to (..., C_out), as `nn.Linear`."""
        rows = x.reshape(1, -1, x.size(-1)).expand(self.blocks.size(0), -1, -1)
        y = torch.bmm(rows, self.blocks)  # (N, rows, COLUMNS)
        y = y.transpose(0, 1).reshape(*x.shape[:-1], -1)[..., : self.out_features]
        return y if self.bias is None else y + self.bias
