"""Checks of what a GPU computes in a fast way: attention by fused kernels, and copies from pinned memory.

Each is compared once with the plain way. If it fails or differs, the plain way is used from then on (`fallbacks`).
Other fast paths are checked where they are made: the optimizers, the compiled network, recorded decoding.
"""

import functools

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from nanogpt_lite.device import devices, fallbacks, memory
from nanogpt_lite.device.fallbacks import FastPath

USED_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]  # see `compute_settings`
ROWS, HEADS, TOKENS = 2, 2, 80  # of the attention that is checked: more tokens than one tile of a kernel has
# The largest difference, as a fraction of the largest number. Kernels round scores and weights at different places.
TOLERANCES = {torch.float32: 0.005, torch.float16: 0.02, torch.bfloat16: 0.1}


def check(device: torch.device, dtype: str, *, head_size: int) -> None:
    """Check on a CUDA device what training and sampling in `dtype` use, once in this process."""
    if device.type == "cuda":
        _check_pinned_memory(device)
        try:
            _check_attention(device, devices.DTYPES[dtype], head_size)
        except RuntimeError as error:
            if not memory.is_out_of_memory(error):
                raise  # else it is checked the next time


def differs(results: list[Tensor], expected: list[Tensor], tolerance: float) -> str:
    """How much tensors differ, if by more than a fraction of the largest number in each; else an empty text."""
    for result, plain in zip(results, expected, strict=True):
        difference = ((result.float() - plain.float()).abs().max() / plain.float().abs().max().clamp(min=1e-6)).item()
        if not difference <= tolerance:  # also if it is not a number
            return f"its results differ by {difference:.2g} of the largest number"
    return ""


def give_up_attention(reason: str) -> None:
    """Compute attention in plain operators from now on in this process."""
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    fallbacks.give_up(FastPath.ATTENTION, reason)


@functools.cache
def _check_pinned_memory(device: torch.device) -> None:
    numbers = torch.arange(1000)
    try:
        copied = numbers.pin_memory().to(device, non_blocking=True).cpu()
        problem = differs([copied], [numbers], 0.0)
    except RuntimeError as error:
        problem = str(error)
    if problem:
        fallbacks.give_up(FastPath.PINNED_MEMORY, problem)


@functools.cache
def _check_attention(device: torch.device, dtype: torch.dtype, head_size: int) -> None:
    """Attention of a training step and of a decoding step. PyTorch's error if memory is not enough."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(3, ROWS, HEADS, TOKENS, head_size, generator=generator).to(device, dtype)
    try:
        with sdpa_kernel(USED_KERNELS):
            results = _attention(qkv)
        with sdpa_kernel(SDPBackend.MATH):
            expected = _attention(qkv)
        problem = differs(results, expected, TOLERANCES[dtype])
    except RuntimeError as error:
        if memory.is_out_of_memory(error):
            raise
        problem = str(error)
    if problem:
        give_up_attention(problem)


def _attention(qkv: Tensor) -> list[Tensor]:
    """Causal attention and its gradient, and attention of the last token with a mask."""
    with torch.enable_grad(), torch.inference_mode(False):
        leaf = qkv.clone().requires_grad_()
        q, k, v = leaf
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        (gradient,) = torch.autograd.grad(y.float().square().sum(), leaf)
    mask = qkv.new_zeros(1, TOKENS).masked_fill_(torch.arange(TOKENS, device=qkv.device) > TOKENS // 2, -torch.inf)
    with torch.no_grad():
        masked = F.scaled_dot_product_attention(q[:, :, -1:], k, v, mask)
    return [y.detach(), gradient, masked]
