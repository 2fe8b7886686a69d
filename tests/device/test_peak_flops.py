"""The peak rates of GPUs, looked up by the device names that PyTorch gives."""

import pytest

from nanogpt_lite.device.peak_flops import mfu


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("Tesla T4", 65e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA RTX A4000", None),
        ("NVIDIA T400", None),
        ("cpu", None),
        ("mps", None),
    ],
)
def test_mfu_is_relative_to_the_peak_of_the_named_device(device, peak):
    rate = mfu(1e6, 1e7, device, "bfloat16")
    assert rate == (None if peak is None else pytest.approx(1e13 / peak))
    assert mfu(1e6, 1e7, device, "float32") is None
