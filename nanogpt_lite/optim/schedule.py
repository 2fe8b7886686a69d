"""The learning-rate schedule, a pure function of the step.

`optim.build.set_learning_rates` writes its value into the optimizer; `trainer.step` calls that before each step.
"""

import math

from nanogpt_lite.config.options import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """Return the learning rate of step `step` (from 0), which is nanoGPT's `get_lr(step)`.

    With W = `warmup_iters` and E = `lr_decay_iters` (0 stands for `max_iters`), and with the rate going from
    max = `learning_rate` to min = `min_lr`:

        step < W     max * (step + 1) / (W + 1)                   linear warm-up
        step >= E    min
        otherwise    min + 0.5 * (1 + cos(pi * p)) * (max - min)  cosine decay, p = (step - W) / (E - W)

    With `cooldown` c > 0, a linear decay over the last c * E steps replaces the cosine (Hägele et al. 2024):

        otherwise    min + min(1, (E - step) / (c * E)) * (max - min)

    Without `decay_lr` the rate is constant.

    >>> config = TrainConfig(learning_rate=1e-3, min_lr=1e-4, warmup_iters=4, max_iters=100)
    >>> [round(learning_rate(step, config), 6) for step in (0, 4, 52, 100)]
    [0.0002, 0.001, 0.00055, 0.0001]
    """
    if not config.decay_lr:
        return config.learning_rate
    if step < config.warmup_iters:
        return config.learning_rate * (step + 1) / (config.warmup_iters + 1)
    end = config.lr_decay_iters or config.max_iters
    if step >= end:
        return config.min_lr
    if config.cooldown:
        remaining = (end - step) / (config.cooldown * end)
        return config.min_lr + min(1.0, remaining) * (config.learning_rate - config.min_lr)
    progress = (step - config.warmup_iters) / (end - config.warmup_iters)
    return config.min_lr + 0.5 * (1 + math.cos(math.pi * progress)) * (config.learning_rate - config.min_lr)
