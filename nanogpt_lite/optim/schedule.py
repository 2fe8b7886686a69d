"""The optimizer and its learning rate. When to step is the business of `trainer`."""

import math

from nanogpt_lite.config.options import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """The learning rate of step `step` (from 0): linear warm-up, then a half cosine down to `min_lr`.

    nanoGPT's formula, where `lr_decay_iters` 0 stands for `max_iters`. With a `cooldown` there is no cosine: the rate
    stays, and falls in a straight line over that last share of the steps (Hägele et al. 2024).
    """
    if not config.decay_lr:
        return config.learning_rate
    if step < config.warmup_iters:
        return config.learning_rate * (step + 1) / (config.warmup_iters + 1)
    end = config.lr_decay_iters or config.max_iters
    if step >= end:
        return config.min_lr
    if config.cooldown:
        left = (end - step) / (config.cooldown * end)
        return config.min_lr + min(1.0, left) * (config.learning_rate - config.min_lr)
    progress = (step - config.warmup_iters) / (end - config.warmup_iters)
    return config.min_lr + 0.5 * (1 + math.cos(math.pi * progress)) * (config.learning_rate - config.min_lr)
