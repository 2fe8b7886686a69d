"""Drawing text: filters on the logits, and one iterator that generates token by token.

Row r of a call draws from (seed, r) alone, so the text of a row does not depend on how many there are.
"""

import numpy as np
import torch
from torch import Tensor

from nanogpt_lite.config.options import SampleConfig

RNG_CHUNK = 256  # random numbers made ahead at a time


def sample_token(logits: Tensor, draws: Tensor, config: SampleConfig) -> Tensor:
    """One id for each row of logits (B, V), (B,): the likeliest, or by the row's uniform number in `draws` (B,)."""
    if config.temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = filter_logits(logits / config.temperature, config).softmax(dim=-1)
    # The first id at which the cumulated probability exceeds the draw: it has a probability above 0.
    cumulated = probabilities.cumsum(dim=-1)
    drawn = draws[:, None] * cumulated[:, -1:]
    return (cumulated <= drawn).sum(dim=-1)


def filter_logits(logits: Tensor, config: SampleConfig) -> Tensor:
    """Logits (B, V) with what `top_k`, `top_p` and `min_p` exclude, in this order, set to minus infinity.

    Top-p is nucleus sampling (Holtzman et al. 2020): the smallest set of likeliest tokens whose probabilities
    sum to `top_p` or more. Min-p (Nguyen et al. 2024) drops what is less likely than `min_p` times the likeliest.
    The likeliest token always stays, and so do tokens as likely as the last one that top-k lets in.
    """
    if 0 < config.top_k < logits.size(-1):
        smallest = logits.topk(config.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if config.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        probabilities = ordered.softmax(dim=-1)
        before = probabilities.cumsum(dim=-1) - probabilities  # of the likelier ones together
        excluded = before >= config.top_p
        excluded[:, 0] = False
        logits = logits.masked_fill(excluded.scatter(-1, order, excluded), -torch.inf)
    if config.min_p > 0:
        probabilities = logits.softmax(dim=-1)
        likeliest = probabilities.max(dim=-1, keepdim=True).values
        logits = logits.masked_fill(probabilities < config.min_p * likeliest, -torch.inf)
    return logits


def uniforms(seed: int, rows: int, first: int, *, device: torch.device) -> Tensor:
    """Numbers `first` to `first + RNG_CHUNK - 1` of each row's own sequence in [0, 1), (rows, DRAWS), float32."""
    bits = [np.random.Philox(key=[seed, row], counter=first // 4).random_raw(RNG_CHUNK) for row in range(rows)]
    # 24 bits: as many as float32 holds, so that none is rounded up to 1
    return torch.from_numpy((np.array(bits) >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)).to(device)
