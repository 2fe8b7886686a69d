"""The text, the options and the runs that inputs are made from: as small as they can be."""

import re
from pathlib import Path
from typing import Any

from tiny import TINY_GPT

import nanogpt_lite as ng

TEXT = "".join(f"{n} green bottles hanging on the wall, and if {n % 7} should fall;\n" for n in range(12))
# nanoGPT's and Hugging Face's network
PLAIN_OPTIONS: dict[str, Any] = {**TINY_GPT, "max_iters": 3, "eval_interval": 2, "warmup_iters": 1}
# Muon, rotary positions, n-grams
MODERN_OPTIONS: dict[str, Any] = {**PLAIN_OPTIONS, "preset": "modern-cpu", "ngram": 2, "ngram_rows": 64}
RUN = Path("runs/fuzzed")


def write_text() -> Path:
    """bottles.txt in the current folder."""
    path = Path("bottles.txt")
    path.write_text(TEXT, encoding="utf-8")
    return path


def train(options: dict[str, Any]) -> Path:
    """Train on bottles.txt; the folder of the run, beside which is data/. All bytes are the same each time."""
    write_text()
    for _ in ng.training("bottles.txt", out_dir=RUN, **options):
        pass
    path = RUN / "metrics.jsonl"
    path.write_text(re.sub(r'("(?:seconds|tokens_per_second)": )[^,}]*', r"\g<1>1.5", path.read_text()))
    return RUN


def resume(options: dict[str, Any]) -> None:
    """Resume the run in `RUN`."""
    for _ in ng.training(out_dir=RUN, init_from="resume", **options):
        pass
