"""Estimates of the training speed on a GPU, from the arithmetic and the memory traffic of a step, to compare with."""

import json
from pathlib import Path

from gpu_rows import MODERN_STEP, STEP

from nanogpt_lite.device.gpus import find_gpu

ESTIMATES = Path(__file__).resolve().parent / "results" / "launches.json"
ROWS = {"shakespeare_char": STEP, "modern": MODERN_STEP}  # by preset, then by whether the network is compiled


def read_estimates(path: Path, device: str) -> dict[str, float]:
    """The estimated tokens per second on a GPU, by the name of the row. None where there is no file or no such GPU.

    `device` is PyTorch's name. The file has a list `estimates` of objects with `gpu` (a name in `device.gpus`),
    `preset`, `compile` and `tokens_per_second`.
    """
    gpu = find_gpu(device)
    if gpu is None or not path.is_file():
        return {}
    return {
        ROWS[estimate["preset"]][estimate["compile"]].name: estimate["tokens_per_second"]
        for estimate in json.loads(path.read_text(encoding="utf-8")).get("estimates", [])
        if estimate["gpu"] == gpu.name and estimate["preset"] in ROWS
    }
