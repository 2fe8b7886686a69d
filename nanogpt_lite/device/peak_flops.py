"""Peak floating-point rates of GPUs, and how much of the peak a training uses (MFU)."""

import re

# FLOP/s of dense 16-bit matrix products with 32-bit accumulation, from the vendors' data sheets. The first name that is
# part of the device's name counts, so longer names come first.
PEAK_FLOPS = (
    ("B300", 2.25e15),
    ("B200", 2.25e15),
    ("H200", 989e12),
    ("H100 NVL", 835e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("GH200", 989e12),
    ("A100", 312e12),
    ("A10G", 70e12),
    ("A10", 125e12),
    ("A30", 165e12),
    ("A40", 149.7e12),
    ("RTX A6000", 154.8e12),
    ("L40S", 362e12),
    ("L40", 181e12),
    ("L4", 121e12),
    ("V100", 125e12),
    ("T4", 65e12),
    ("RTX 5090", 209.5e12),
    ("RTX 4090", 165.2e12),
    ("RTX 3090", 71e12),
)


def mfu(tokens_per_second: float, flops_per_token: float, device: str, dtype: str) -> float | None:
    """Model FLOPs utilization, 0 to 1 (PaLM, appendix B).

    `device` is PyTorch's name of the GPU. None if its peak is not in the table, or if `dtype` has more than 16 bits.
    """
    if dtype not in ("bfloat16", "float16") or "Laptop" in device:
        return None
    peaks = (peak for name, peak in PEAK_FLOPS if re.search(rf"\b{name}\b", device))
    peak = next(peaks, None)
    return None if peak is None else tokens_per_second * flops_per_token / peak
