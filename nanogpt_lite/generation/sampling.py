"""Choose the next token from logits: temperature, top-k, top-p and min-p, and the random numbers for it.

Row r of a batch uses the random sequence (seed, r), so its text does not depend on the number of rows.
"""

import numpy as np
import torch
from torch import Tensor

from nanogpt_lite.config.options import FilterConfig

SMALLEST_TEMPERATURE = 1e-30  # below it, a quotient of float32 may be infinite; the likeliest token is certain there
RNG_CHUNK = 256  # random numbers generated at a time for each row; a multiple of 4, see `make_uniforms`


def sample_token(logits: Tensor, uniforms: Tensor, config: FilterConfig) -> Tensor:
    """Return one token id (B,) for each row of `logits` (B, V), sampled with the row's number in `uniforms` (B,).

    With `temperature` 0 it is the likeliest token (greedy decoding), and `uniforms` is not used.
    """
    if config.temperature == 0:
        return logits.argmax(dim=-1)
    temperature = max(config.temperature, SMALLEST_TEMPERATURE)
    probabilities = filter_logits(logits / temperature, config).softmax(dim=-1)
    # Inverse transform sampling: the first id whose cumulative probability exceeds the uniform number. The number is
    # scaled by the total, which rounding may leave slightly below 1. Ids with probability 0 are left out: a GPU adds up
    # in parallel, so that a sum may grow by rounding where nothing is added.
    cumulative = probabilities.cumsum(dim=-1).masked_fill(probabilities == 0, 0)  # (B, V)
    thresholds = uniforms[:, None] * cumulative.amax(dim=-1, keepdim=True)  # (B, 1)
    return (cumulative > thresholds).to(torch.uint8).argmax(dim=-1)  # the first of the largest


def filter_logits(logits: Tensor, config: FilterConfig) -> Tensor:
    """Return logits (B, V) in which tokens excluded by `top_k`, `top_p` or `min_p`, in this order, are -inf.

    Each filter sees the probabilities that the one before it leaves. The likeliest token always stays.
    """
    if 0 < config.top_k < logits.size(-1):
        logits = apply_top_k(logits, config.top_k)
    if config.top_p < 1:
        logits = apply_top_p(logits, config.top_p)
    if config.min_p > 0:
        logits = apply_min_p(logits, config.min_p)
    return logits


def apply_top_k(logits: Tensor, top_k: int) -> Tensor:
    """Keep the `top_k` likeliest tokens, and, as in nanoGPT, any that are as likely as the last of them.

    >>> apply_top_k(torch.tensor([[3.0, 1.0, 2.0, 2.0]]), 2)
    tensor([[3., -inf, 2., 2.]])
    """
    smallest_kept = logits.topk(top_k, dim=-1).values[:, -1:]
    return logits.masked_fill(logits < smallest_kept, -torch.inf)


def apply_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Keep the smallest set of likeliest tokens whose probabilities sum to `top_p` or more.

    Nucleus sampling (Holtzman et al. 2020).

    >>> apply_top_p(torch.tensor([[0.5, 0.3, 0.2]]).log(), 0.75).exp()
    tensor([[0.5000, 0.3000, 0.0000]])
    """
    sorted_logits, order = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = sorted_logits.softmax(dim=-1)
    probability_before = probabilities.cumsum(dim=-1) - probabilities  # of all likelier tokens together
    excluded = probability_before >= top_p
    excluded[:, 0] = False
    return logits.masked_fill(excluded.scatter(-1, order, excluded), -torch.inf)


def apply_min_p(logits: Tensor, min_p: float) -> Tensor:
    """Keep the tokens that are at least `min_p` times as likely as the likeliest one (Nguyen et al. 2024).

    >>> apply_min_p(torch.tensor([[0.5, 0.3, 0.2]]).log(), 0.5).exp()
    tensor([[0.5000, 0.3000, 0.0000]])
    """
    probabilities = logits.softmax(dim=-1)
    max_probability = probabilities.max(dim=-1, keepdim=True).values
    return logits.masked_fill(probabilities < min_p * max_probability, -torch.inf)


def make_uniforms(seed: int, num_rows: int, start: int, *, device: torch.device) -> Tensor:
    """Return the random numbers `start` to `start + RNG_CHUNK - 1` of each row's sequence: (num_rows, RNG_CHUNK).

    They are float32, uniform in [0, 1). `start` is a multiple of 4: one Philox counter yields four numbers (Salmon et
    al. 2011), so the generator can start anywhere without computing what comes before.
    """
    bits = [np.random.Philox(key=[seed, row], counter=start // 4).random_raw(RNG_CHUNK) for row in range(num_rows)]
    # The upper 24 of 64 bits: float32 represents them exactly, so that no number is rounded up to 1.
    return torch.from_numpy((np.array(bits) >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)).to(device)
