"""Device, number format and threads, as far as they can be tested without a GPU."""

import os

import pytest
import torch

from nanogpt_lite.device import devices
from nanogpt_lite.errors import UserError

CPU = torch.device("cpu")


def test_auto_device_prefers_cuda_then_mps_then_cpu(monkeypatch):
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, device=None: empty(*shape))
    for cuda, mps, expected in [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert devices.resolve_device("auto").type == expected


@pytest.mark.parametrize("name", ["cuda:99", "tpu", "mps:7", "meta", "cpu:x"])
def test_unavailable_device_is_a_user_error_with_remedy(name):
    with pytest.raises(UserError, match=r"device=.*(--device|give) .*cpu"):
        devices.resolve_device(name)


def test_auto_dtype_on_cuda_depends_on_the_compute_capability(monkeypatch):
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert devices.resolve_dtype("auto", cuda, width=16) == "bfloat16"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert devices.resolve_dtype("auto", cuda, width=16) == "float16"
    assert devices.resolve_dtype("bfloat16", CPU, width=16) == "bfloat16"


@pytest.mark.parametrize(
    ("avx512", "amx", "width", "expected"),
    [(True, False, 128, "bfloat16"), (False, True, 128, "bfloat16"), (False, False, 128, "float32"),
     (True, True, 64, "float32")],
)  # fmt: skip
def test_auto_dtype_on_cpu_is_bfloat16_for_wide_networks_if_supported(monkeypatch, avx512, amx, width, expected):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert devices.resolve_dtype("auto", CPU, width=width) == expected
    assert devices.resolve_dtype("auto", torch.device("mps"), width=width) == "float32"


@pytest.mark.parametrize(("pytorch_threads", "expected"), [(1, 1), (3, 3), (16, 16), (17, 16), (128, 16)])
def test_default_threads_are_those_of_pytorch_up_to_a_maximum(monkeypatch, pytorch_threads, expected):
    monkeypatch.setattr(torch, "get_num_threads", lambda: pytorch_threads)
    assert devices.resolve_threads(0) == expected


def test_too_many_threads_for_the_processors_are_refused(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert [devices.resolve_threads(number) for number in (1, 16)] == [1, 16]
    with pytest.raises(UserError, match="threads=17 is too much for 2 processors; give `threads=2`"):
        devices.resolve_threads(17)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert devices.resolve_threads(256) == 256


def test_use_threads_sets_and_restores_the_number():
    before = torch.get_num_threads()
    with devices.use_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with pytest.raises(KeyError), devices.use_threads(before + 1):
        raise KeyError
    assert torch.get_num_threads() == before
    assert devices.resolve_threads(7) == 7


def test_onednn_is_disabled_for_float32_only_and_restored():
    assert torch.backends.mkldnn.enabled
    with devices.without_onednn(torch.float32):
        assert not torch.backends.mkldnn.enabled
    with devices.without_onednn(torch.bfloat16):
        assert torch.backends.mkldnn.enabled
    with pytest.raises(KeyError), devices.without_onednn(torch.float32):
        raise KeyError
    assert torch.backends.mkldnn.enabled
