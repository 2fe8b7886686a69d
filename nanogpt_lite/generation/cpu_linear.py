"""Linear layers that are fast on a CPU for inputs of a few rows, as in generation.

Optional: `nn.Linear` works too, but slower. With a few rows, the time goes into reading the weights from memory.
Measured on two cores (AMD EPYC with AVX-512, torch 2.13) for the 24 linear layers of a network with 10.65M parameters,
in ms for 1 row and for 10 rows:

    nn.Linear               4.6   5.8
    BlockedLinear           1.5   3.8
    PackedLinear            2.8   3.1
    PackedLinear, bfloat16  1.4   1.8
    Int8Linear              0.6   1.9
"""

from collections.abc import Callable
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanogpt_lite.errors import UserError
from nanogpt_lite.model.gpt import GPT
from nanogpt_lite.model.shallow_copy import copy_modules

BLOCK_COLUMNS = 32  # output channels of a block in BlockedLinear: more are slower for one row, fewer for a long prompt
INT8_ALIGNMENT = 64  # input channels: PyTorch's int8 operator reads whole vectors, even past the end of a row
MIN_TOKENS = 32  # the fast layers save for 5 to 15 tokens as much time as it takes to make them; measured as above


def copy_for_generation(model: GPT, batch_size: int, max_new_tokens: int) -> GPT:
    """A copy of the model that generates `max_new_tokens` tokens of `batch_size` texts fast; `model` stays as it is.

    It shares all tensors with `model`, except for the weights of linear layers that `optimize_linears` replaces. These
    take memory as long as the copy exists, and do not follow later changes of the model.
    """
    copied = copy_modules(model)
    optimize_linears(copied, batch_size, max_new_tokens)
    return copied


def optimize_linears(model: GPT, batch_size: int, max_new_tokens: int = MIN_TOKENS) -> None:
    """Replace the linear layers of the blocks, in place, by the fastest ones for generating `batch_size` texts.

    Only on a CPU, in float32 or where oneDNN has it in bfloat16, and for at least `MIN_TOKENS` tokens; otherwise the
    model stays as it is.
    Logits change by rounding errors only, but the model can no longer be trained or saved.
    """
    if max_new_tokens < MIN_TOKENS:
        return
    weight, has_onednn = model.lm_head.weight, torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    is_bfloat16 = weight.dtype == torch.bfloat16
    is_fast = has_onednn_bfloat16() if is_bfloat16 else weight.dtype == torch.float32
    if weight.device.type != "cpu" or not is_fast:
        return
    if has_onednn and (batch_size > 1 or is_bfloat16):
        _replace_linears(model, lambda linear: PackedLinear(linear, batch_size))
    else:
        _replace_linears(model, BlockedLinear)


def has_onednn_bfloat16() -> bool:
    """Whether oneDNN has products in bfloat16 on this CPU: not without AVX-512 or AVX-NE-CONVERT, as on older AMD."""
    has_onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return has_onednn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def quantize_int8(model: GPT) -> None:
    """Replace the linear layers of the blocks, in place, by layers with 8-bit weights. `UserError` if not on a CPU."""
    device = model.lm_head.weight.device
    if device.type != "cpu":
        raise UserError(f"`int8=True` needs a CPU, but the device is {device}; give `int8=False` or `device='cpu'`")
    _replace_linears(model, Int8Linear)


def _replace_linears(model: GPT, make_layer: Callable[[nn.Linear], nn.Module]) -> None:
    for module in list(model.transformer.modules()):
        for name, child in module.named_children():
            if _is_plain_linear(child):
                setattr(module, name, make_layer(child))


def _is_plain_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether this is PyTorch's own linear layer, which computes nothing else, as by an adapter (LoRA) or a hook."""
    is_changed = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    return type(module) is nn.Linear and not is_changed


class BlockedLinear(nn.Module):
    """A linear layer with its weight in contiguous blocks of output channels, (N, C_in, BLOCK_COLUMNS).

    One batched product with all blocks reads the memory in order and gives each thread an equal share. A plain product
    with few rows does neither.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.out_features = linear.out_features
        padding = -linear.out_features % BLOCK_COLUMNS
        weight = linear.weight.detach()
        weight = F.pad(weight, (0, 0, 0, padding)) if padding else weight  # `pad` always copies
        self.blocks = weight.view(-1, BLOCK_COLUMNS, linear.in_features).transpose(1, 2).contiguous()
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """x (..., C_in) to (..., C_out), as `nn.Linear`."""
        rows = x.reshape(1, -1, x.size(-1)).expand(self.blocks.size(0), -1, -1)  # (N, rows, C_in)
        y = torch.bmm(rows, self.blocks)  # (N, rows, BLOCK_COLUMNS)
        y = y.transpose(0, 1).reshape(*x.shape[:-1], -1)[..., : self.out_features]
        return y if self.bias is None else y + self.bias


class PackedLinear(nn.Module):
    """A linear layer with its weight in oneDNN's own memory layout, optimal for inputs of `batch_size` rows.

    It uses the operators that torch.compile (Inductor) uses for frozen weights. PyTorch's public layers would convert
    the weight again at each call.
    """

    def __init__(self, linear: nn.Linear, batch_size: int) -> None:
        super().__init__()
        self.packed_weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), batch_size)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """x (..., C_in) to (..., C_out), as `nn.Linear`."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed_weight, self.bias, "none", [], "")
        return y


class Int8Linear(nn.Module):
    """A linear layer with int8 weights and one scale for each output channel (Dettmers et al. 2022, section 2).

    Its input is rounded to bfloat16, for which PyTorch's operator is fast.
    """

    int8_weight: Tensor  # (C_out, C_in), with C_in padded
    scales: Tensor  # (C_out,)

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        # the smallest float avoids a division by zero in rows of zeros
        scales = weight.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / 127
        self.padding = -linear.in_features % INT8_ALIGNMENT
        int8_weight = (weight / scales[:, None]).round().to(torch.int8)
        self.register_buffer("int8_weight", F.pad(int8_weight, (0, self.padding)))
        self.register_buffer("scales", scales.bfloat16())
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """x (..., C_in) to (..., C_out), as `nn.Linear`."""
        rows = x.reshape(-1, x.size(-1)).bfloat16()
        rows = F.pad(rows, (0, self.padding)) if self.padding else rows
        y = torch._weight_int8pack_mm(rows, self.int8_weight, self.scales).to(x.dtype)
        y = y.view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias
