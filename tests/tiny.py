"""Options of trainings that take a moment. A test changes what it is about: `{**TINY, "max_iters": 4}`."""

from typing import Any

TINY: dict[str, Any] = {  # 20 steps with dropout, evaluated twice
    "device": "cpu",
    "threads": 1,
    "block_size": 16,
    "n_layer": 1,
    "n_head": 2,
    "n_embd": 16,
    "ngram": 1,
    "ngram_expert": 0,
    "dropout": 0.1,
    "batch_size": 4,
    "max_iters": 20,
    "eval_interval": 10,
    "warmup_iters": 2,
}
TINY_GPT: dict[str, Any] = {  # nanoGPT's recipe and network, as small as it can be
    "preset": "cpu",
    "device": "cpu",
    "threads": 1,
    "block_size": 8,
    "n_layer": 1,
    "n_head": 2,
    "n_embd": 8,
    "batch_size": 4,
    "warmup_iters": 2,
}


def to_arguments(options: dict[str, Any]) -> list[str]:
    """The options as arguments of the command line: --n_layer 1 ..."""
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]
