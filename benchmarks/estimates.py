"""Estimates of the speed on a GPU to compare with: those of the roofline model of `launches.py`."""

import json
from pathlib import Path

from gpu_rows import MODERN_STEP, ONE_SAMPLE, STEP, TEN_SAMPLES
from table import Row

import nanogpt_lite as ng
from nanogpt_lite.device.gpus import find_gpu

ESTIMATES = Path(__file__).resolve().parent / "results" / "launches.json"
TOKENS_PER_STEP = ng.TrainConfig.batch_size * ng.TrainConfig.block_size
# for each group of estimates in the file, by their names: the row, and the tokens that take the estimated milliseconds
ROWS: dict[str, dict[str, tuple[Row, int]]] = {
    "steps": {
        "shakespeare_char": (STEP[False], TOKENS_PER_STEP),
        "shakespeare_char, compiled": (STEP[True], TOKENS_PER_STEP),
        "modern": (MODERN_STEP[False], TOKENS_PER_STEP),
        "modern, compiled": (MODERN_STEP[True], TOKENS_PER_STEP),
    },
    "tokens": {
        "shakespeare_char, one sample": (ONE_SAMPLE, 1),
        "shakespeare_char, ten samples": (TEN_SAMPLES, 10),
    },
}


def read_estimates(path: Path, device: str) -> dict[str, float]:
    """The estimated tokens per second of nanogpt_lite, by the name of the row; only for the GPUs that the file has.

    `device` is PyTorch's name. The file is what `launches.py` writes, if it is there: its groups `steps` and `tokens`
    have `estimated_ms` by the GPU's name in `device.gpus`.
    """
    gpu = find_gpu(device)
    if gpu is None or not path.is_file():
        return {}
    report = json.loads(path.read_text(encoding="utf-8"))
    return {
        row.name: 1000 * tokens / milliseconds
        for group, rows in ROWS.items()
        for name, (row, tokens) in rows.items()
        if (milliseconds := report[group][name]["estimated_ms"].get(gpu.name))
    }
