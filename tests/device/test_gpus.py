"""The table of GPUs, looked up by the device names that PyTorch gives."""

import pytest

from nanogpt_lite.device.gpus import GPUS, find_gpu, mfu


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 503.8e12),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", None),
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


def test_each_gpu_is_found_by_its_own_name_and_names_differ():
    assert [find_gpu(f"NVIDIA {gpu.name} of a vendor") for gpu in GPUS] == list(GPUS)


def test_each_type_of_modal_has_one_price_one_memory_and_a_peak():
    for gpu in GPUS:
        assert bool(gpu.modal_type) == (gpu.dollars_per_second is not None), gpu
        assert bool(gpu.modal_type) == (gpu.memory is not None), gpu
        assert 50e12 < gpu.peak_flops < 5e15, gpu
    prices = {(gpu.modal_type, gpu.dollars_per_second, gpu.memory) for gpu in GPUS if gpu.modal_type}
    assert len(prices) == len({modal_type for modal_type, *_ in prices})
    sizes = {gpu.modal_type: gpu.memory for gpu in GPUS}
    assert (sizes["A100-40GB"], sizes["A100-80GB"]) == (40 * 10**9, 80 * 10**9)


@pytest.mark.parametrize(
    ("device", "modal_type"),
    [
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA A10G", "A10"),
        ("NVIDIA L40S", "L40S"),
        ("Tesla T4", "T4"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX-PRO-6000"),
    ],
)
def test_device_in_a_container_is_of_the_rented_type(device, modal_type):
    gpu = find_gpu(device)
    assert gpu is not None
    assert gpu.modal_type == modal_type
