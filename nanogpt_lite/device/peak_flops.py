"""The records that a run emits, as it goes, and the rates in them.

Where they are written is the business of `logs`; who emits them, of `trainer` and `pipeline`.
"""

import re

# Dense 16-bit matrix products with 32-bit sums, in FLOP/s, from the makers' data sheets. The first name whose
# words stand in the device's name counts, so the longer ones come first.
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
    """Model FLOPs utilization, 0 to 1 (PaLM, appendix B): None where the peak of `device` in `dtype` is not known."""
    known = (peak for name, peak in PEAK_FLOPS if re.search(rf"\b{name}\b", device) and "Laptop" not in device)
    peak = next(known, None)
    return tokens_per_second * flops_per_token / peak if peak and dtype in ("bfloat16", "float16") else None
