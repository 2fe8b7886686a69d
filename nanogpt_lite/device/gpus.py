"""The table of GPUs: peak floating-point rates, and what Modal has: types, prices, memory. Use of the peak (MFU).

What a call on Modal costs is computed in `cloud.client.rental`.
"""

import re
from dataclasses import dataclass

GB = 10**9


@dataclass(frozen=True)
class GPU:
    """A model of GPU."""

    name: str  # words that PyTorch's name of the device contains
    peak_flops: float  # FLOP/s of dense 16-bit matrix products with 32-bit accumulation
    modal_type: str = ""  # what `gpu=` of a Modal Function takes; empty if Modal does not have it
    dollars_per_second: float | None = None  # at Modal
    memory: int | None = None  # bytes; of those at Modal, whose types have one size each


# Peaks: the vendors' data sheets; of sparse rates, half. Only that of the RTX PRO 6000 is not from a data sheet: it is
# what others list for the workstation edition; the server edition, which Modal has, may differ.
# Memory: the vendors' data sheets, where a GB is 10^9 bytes, of which the driver and error correction take up to 4 %. A
# B200 has 180 GB in NVIDIA's DGX B200, and 192 GB elsewhere.
# Prices: https://modal.com/pricing as listed in May 2026; CPU and memory are charged in addition. Modal's A10 may be an
# A10G.
GPUS = (
    GPU("T4", 65e12, "T4", 0.000164, 16 * GB),
    GPU("L4", 121e12, "L4", 0.000222, 24 * GB),
    GPU("A10", 125e12, "A10", 0.000306, 24 * GB),
    GPU("A10G", 70e12, "A10", 0.000306, 24 * GB),
    GPU("L40S", 362e12, "L40S", 0.000542, 48 * GB),
    GPU("A100 40GB", 312e12, "A100-40GB", 0.000583, 40 * GB),
    GPU("A100 80GB", 312e12, "A100-80GB", 0.000694, 80 * GB),
    GPU("RTX PRO 6000 Blackwell", 503.8e12, "RTX-PRO-6000", 0.000842, 96 * GB),
    GPU("H100", 989e12, "H100", 0.001097, 80 * GB),
    GPU("H200", 989e12, "H200", 0.001261, 141 * GB),
    GPU("B200", 2.25e15, "B200", 0.001736, 180 * GB),
    # not at Modal
    GPU("A100", 312e12),
    GPU("A30", 165e12),
    GPU("A40", 149.7e12),
    GPU("B300", 2.25e15),
    GPU("GH200", 989e12),
    GPU("H100 NVL", 835e12),
    GPU("H100 PCIe", 756e12),
    GPU("L40", 181e12),
    GPU("RTX 3090", 71e12),
    GPU("RTX 4090", 165.2e12),
    GPU("RTX 5090", 209.5e12),
    GPU("RTX A6000", 154.8e12),
    GPU("V100", 125e12),
)


def find_gpu(device_name: str) -> GPU | None:
    """The GPU in the table that PyTorch calls by this name; None if it is not there.

    All words of the table's name occur in it, such as A100 and 40GB in "NVIDIA A100-SXM4-40GB". The name with the most
    words counts. A laptop's GPU is another one than the desktop's of the same name; a Max-Q has a lower clock.
    """
    words = set(re.findall(r"\w+", device_name))
    if words & {"Laptop", "Max"}:
        return None
    matches = [gpu for gpu in GPUS if words.issuperset(gpu.name.split())]
    return max(matches, key=lambda gpu: len(gpu.name.split()), default=None)


def mfu(tokens_per_second: float, flops_per_token: float, device: str, dtype: str) -> float | None:
    """Model FLOPs utilization, 0 to 1 (PaLM, appendix B).

    `device` is PyTorch's name of the GPU. None if it is not in the table, or if `dtype` has more than 16 bits.
    """
    gpu = find_gpu(device) if dtype in ("bfloat16", "float16") else None
    return None if gpu is None else tokens_per_second * flops_per_token / gpu.peak_flops
