"""Checks of attention and of pinned memory: on the CPU, with faults put into what PyTorch computes."""

import pytest
import torch
from torch.nn import functional as F
from wrong_gradient import with_wrong_gradient

from nanogpt_lite.device import devices, fallbacks, fast_paths
from nanogpt_lite.device.fallbacks import FastPath

pytestmark = pytest.mark.usefixtures("fresh_fast_paths")

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", list(devices.DTYPES))
@pytest.mark.parametrize("head_size", [16, 64, 128])
def test_right_attention_is_used(dtype, head_size):
    fast_paths._check_attention(CPU, devices.DTYPES[dtype], head_size)
    assert not fallbacks.describe()


def is_plain():
    """Whether only PyTorch's plain attention is allowed."""
    return not (torch.backends.cuda.flash_sdp_enabled() or torch.backends.cuda.mem_efficient_sdp_enabled())


def break_attention(monkeypatch, fault):
    """Fused attention with a fault."""
    attention = F.scaled_dot_product_attention

    def broken(q, k, v, attn_mask=None, is_causal=False):
        y = attention(q, k, v, attn_mask, is_causal=is_causal)
        return y if is_plain() else fault(y, is_causal)

    monkeypatch.setattr(F, "scaled_dot_product_attention", broken)


def no_kernel(y, is_causal):
    raise RuntimeError("No available kernel. Aborting execution.\nmore")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (lambda y, is_causal: y + is_causal, "its results differ by"),
        (lambda y, is_causal: y if is_causal else y * 1.5, "its results differ by"),
        (lambda y, is_causal: with_wrong_gradient(y), "its results differ by nan"),
        (no_kernel, "No available kernel. Aborting execution."),
    ],
    ids=["causal", "masked", "gradient", "error"],
)
def test_wrong_attention_is_replaced_by_the_plain_one(fault, reason, monkeypatch):
    break_attention(monkeypatch, fault)
    assert not is_plain()
    with pytest.warns(UserWarning, match="fused attention cannot be used"):
        fast_paths._check_attention(CPU, torch.float32, 16)
    assert fallbacks.describe()[0].startswith(f"fused attention: {reason}")
    assert is_plain()


def test_too_little_memory_says_nothing_about_attention(monkeypatch):
    def out_of_memory(y, is_causal):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(fast_paths, "_check_pinned_memory", lambda device: None)
    device = torch.device("cuda")
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *_: tensor)
    with monkeypatch.context() as patch:
        break_attention(patch, out_of_memory)
        fast_paths.check(device, "float32", head_size=16)
    assert not fallbacks.describe()
    assert not is_plain()
    break_attention(monkeypatch, lambda y, is_causal: y + 1)
    with pytest.warns(UserWarning, match="fused attention cannot be used"):
        fast_paths.check(device, "float32", head_size=16)


@pytest.mark.parametrize("fault", ["error", "values"])
def test_without_pinned_memory_copies_are_plain(fault, monkeypatch):
    def pin_memory(tensor):
        if fault == "error":
            raise RuntimeError("CUDA error: OS call failed or operation not supported on this OS")
        return tensor + 1

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    with pytest.warns(UserWarning, match="copies from pinned memory cannot be used"):
        fast_paths._check_pinned_memory(CPU)
    assert not fallbacks.is_usable(FastPath.PINNED_MEMORY)


def test_right_pinned_memory_is_used(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.clone())
    fast_paths._check_pinned_memory(CPU)
    assert not fallbacks.describe()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", list(devices.DTYPES))
@pytest.mark.parametrize("head_size", [48, 64, 128])
def test_a_gpu_has_right_fast_paths(dtype, head_size):
    fast_paths.check(torch.device("cuda", 0), dtype, head_size=head_size)
    assert not fallbacks.describe()
