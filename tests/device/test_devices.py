"""Device, number format and threads, as far as they can be tested without a GPU."""

import os
import platform
import warnings
from pathlib import Path

import pytest
import torch

from nanogpt_lite.device import devices
from nanogpt_lite.device.distributed import ProcessGroup
from nanogpt_lite.errors import UserError

CPU = torch.device("cpu")


def test_auto_device_prefers_cuda_then_mps_then_cpu(monkeypatch):
    monkeypatch.setattr(devices, "find_problem", lambda device: "")
    for cuda, mps, expected in [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert devices.resolve_device("auto").type == expected


def fake_gpu(monkeypatch, error):
    """A GPU that allocates memory, and launches no kernel: a V100 with wheels that are built for newer ones."""
    arange = torch.arange

    def no_kernel(*args, device=None):
        if torch.device(device).type == "cuda":
            raise error
        return arange(*args, device=device)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80"])
    monkeypatch.setattr(torch, "empty", lambda *shape, device=None: None)
    monkeypatch.setattr(torch, "arange", no_kernel)


NO_KERNEL = RuntimeError("CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors …")


def test_gpu_that_cannot_compute_is_a_warning_and_the_cpu_unless_it_is_named(monkeypatch):
    fake_gpu(monkeypatch, NO_KERNEL)
    reason = r"no kernel image .* the device: the GPU is an sm_70, and this PyTorch is built for sm_75 sm_80"
    with pytest.warns(UserWarning, match=rf"the GPU cannot be used \(.*{reason}\); using the CPU"):
        assert devices.resolve_device("auto") == CPU
    with pytest.raises(UserError, match=rf"device='cuda' cannot be used on this machine \(.*{reason}\); give"):
        devices.resolve_device("cuda")


def test_each_rank_needs_its_gpu(monkeypatch):
    """One rank on the CPU and others on GPUs could not train together."""
    fake_gpu(monkeypatch, NO_KERNEL)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="device='cuda:1' cannot be used"):
        devices.resolve_device("auto", ProcessGroup(rank=1, world_size=2, local_rank=1, local_world_size=2))


def test_other_errors_of_a_gpu_say_nothing_about_its_capability(monkeypatch):
    fake_gpu(monkeypatch, torch.AcceleratorError("CUDA error: device-side assert triggered"))
    assert devices.find_problem(torch.device("cuda")) == "CUDA error: device-side assert triggered"


def test_device_that_computes_wrong_results_has_a_problem(monkeypatch):
    monkeypatch.setattr(torch, "arange", lambda *args, device: torch.zeros(4))
    assert devices.find_problem(CPU) == "0 + 1 + 2 + 3 is 0.0 on it"
    monkeypatch.undo()
    assert devices.find_problem(CPU) == ""


@pytest.mark.parametrize("name", ["cuda:99", "tpu", "mps:7", "meta", "cpu:x"])
def test_unavailable_device_is_a_user_error_with_remedy(name):
    with pytest.raises(UserError, match=r"device=.*(--device|give) .*cpu"):
        devices.resolve_device(name)


def test_a_gpu_that_cannot_compute_is_a_single_warning(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(devices, "find_problem", lambda device: "" if device.type == "cpu" else "broken")
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default")
        assert devices.resolve_device("auto") == CPU
        assert devices.resolve_device("auto") == CPU
    assert [str(warning.message) for warning in shown] == ["the GPU cannot be used (broken); using the CPU"]


def test_auto_dtype_on_cuda_depends_on_the_compute_capability(monkeypatch):
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert devices.resolve_dtype("auto", cuda, width=16) == "bfloat16"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert devices.resolve_dtype("auto", cuda, width=16) == "float16"
    assert devices.resolve_dtype("bfloat16", CPU, width=16) == "bfloat16"


@pytest.mark.parametrize(
    ("stored", "stored_device", "device", "capability", "expected"),
    [
        ("bfloat16", "cuda", "cuda", (8, 0), "bfloat16"),
        ("bfloat16", "cuda", "cuda", (7, 5), "float16"),  # from an A100 to a T4, which emulates bfloat16
        ("float16", "cuda", "cuda", (8, 0), "float16"),
        ("float32", "cuda", "cuda", (7, 5), "float32"),
        ("float32", "cpu", "cuda", (7, 5), "float16"),
        ("bfloat16", "cpu", "cpu", None, "bfloat16"),
        ("bfloat16", "cuda", "mps", None, "float32"),
    ],
)
def test_dtype_to_continue_with_is_the_stored_one_if_the_device_has_it(
    monkeypatch, stored, stored_device, device, capability, expected
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert devices.resolve_stored_dtype(stored, stored_device, torch.device(device), width=128) == expected


@pytest.mark.parametrize(
    ("vendor", "avx512", "amx", "width", "expected"),
    [("AuthenticAMD", True, False, 128, "bfloat16"), ("GenuineIntel", True, True, 128, "bfloat16"),
     ("GenuineIntel", True, False, 128, "float32"), ("AuthenticAMD", False, False, 128, "float32"),
     ("AuthenticAMD", True, True, 64, "float32")],
)  # fmt: skip
@pytest.mark.parametrize("has_cpuinfo", [True, False])
def test_auto_dtype_on_cpu_is_bfloat16_for_wide_networks_where_it_is_faster(
    monkeypatch, has_cpuinfo, vendor, avx512, amx, width, expected
):
    def read_text(path, **how):
        if path != Path("/proc/cpuinfo"):
            return original(path, **how)
        if not has_cpuinfo:
            raise FileNotFoundError(path)
        return f"processor\t: 0\nvendor_id\t: {vendor}\n"

    original = Path.read_text
    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(platform, "processor", lambda: f"Family 25 Model 17, {vendor}")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert devices.resolve_dtype("auto", CPU, width=width) == expected
    assert devices.resolve_dtype("auto", torch.device("mps"), width=width) == "float32"
    assert devices.has_fast_bfloat16(CPU, "bfloat16", width=width) == (expected == "bfloat16")
    assert not devices.has_fast_bfloat16(CPU, "float32", width=width)


def test_bfloat16_of_a_gpu_is_not_that_of_a_fast_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(devices, "multiplies_bfloat16_faster", lambda: True)
    assert not devices.has_fast_bfloat16(torch.device("cuda"), "bfloat16", width=128)


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


def test_compute_settings_are_set_and_restored():
    def settings():
        cuda = torch.backends.cuda
        # by both of PyTorch's interfaces: each raises an error if the other one was used in a way that it does not know
        assert torch.get_float32_matmul_precision() == ("high" if cuda.matmul.allow_tf32 else "highest")
        assert cuda.matmul.allow_tf32 == (cuda.matmul.fp32_precision == "tf32")
        return torch.get_num_threads(), cuda.matmul.allow_tf32, cuda.cudnn_sdp_enabled()

    before = settings()
    with devices.compute_settings(before[0] + 1, tf32=True):
        assert settings() == (before[0] + 1, True, False)
    assert settings() == before
    with pytest.raises(KeyError), devices.compute_settings(before[0] + 1, tf32=False):
        assert settings() == (before[0] + 1, False, False)
        raise KeyError
    assert settings() == before


def test_threads_that_are_given_are_taken():
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
