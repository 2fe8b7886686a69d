"""The time of a training step, measured on a network of the same options, which is then thrown away."""

import time
from statistics import median

from nanogpt_lite.config.options import TrainConfig
from nanogpt_lite.data import batching
from nanogpt_lite.data.batching import Tokens
from nanogpt_lite.device import devices, memory
from nanogpt_lite.tokenizers.base import Tokenizer
from nanogpt_lite.trainer.network_setup import prepare_network
from nanogpt_lite.trainer.state import init_state
from nanogpt_lite.trainer.step import train_step

TIMED_STEPS = 20
WARMUP_STEPS = 5  # more: memory is allocated in the first ones, and a network is compiled


def measure_step_seconds(config: TrainConfig, tokenizer: Tokenizer, tokens: Tokens, *, max_seconds: float) -> float:
    """The median time in seconds of a step with these options on this machine, for a process that trains alone.

    `tokens`: the train split, shape (tokens,). `max_seconds`: where `TIMED_STEPS` take longer, fewer are timed, at
    least one. What a later training computes does not depend on it.
    """
    deadline = time.perf_counter() + max_seconds
    state = init_state(config, tokenizer)
    config, seconds = state.config, []
    batches = batching.train_batches(
        tokens, rows=config.rows_per_step, block_size=config.block_size, seed=config.seed, step=0
    )
    with devices.compute_settings(config.threads, tf32=config.tf32), memory.retain_heap():
        forward = prepare_network(state)
        for _ in range(WARMUP_STEPS + TIMED_STEPS):
            started = time.perf_counter()
            train_step(state, forward, next(batches))
            devices.synchronize(state.device)
            seconds.append(time.perf_counter() - started)
            if len(seconds) > 1 and time.perf_counter() > deadline:
                break
    return median(seconds[min(WARMUP_STEPS, len(seconds) - 1) :])
