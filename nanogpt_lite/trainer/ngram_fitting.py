"""Fits the n-gram expert of a run to its train split: the counts, and the weight of the mixture.

The counts are those of the tokens that the network is trained on. Neither of them knows how well it does on other text,
so the weight is chosen on tokens of the train split that both are kept from.
"""

import itertools
import math

import numpy as np
import torch
from torch import Tensor

from nanogpt_lite.config.options import NetworkConfig
from nanogpt_lite.data import batching
from nanogpt_lite.data.batching import Tokens, WithoutParts
from nanogpt_lite.device import devices, memory
from nanogpt_lite.model.ngram_expert import UNFITTED_WEIGHT, NgramExpert
from nanogpt_lite.ngrams.counted_tokens import read_counted
from nanogpt_lite.ngrams.ngram_counts import count_ngrams
from nanogpt_lite.tokenizers.base import Ids
from nanogpt_lite.trainer.state import TrainState

HELD_OUT_SHARE, MAX_HELD_OUT = 50, 8192  # a fiftieth of the train split; more tokens hardly change the weight
# docs/benchmarks.md has the losses with the end of the split instead of parts, and with other numbers of prior tokens
HELD_OUT_PARTS = 8  # evenly spread: one alone may be unlike the rest
MIN_PART = 32  # tokens; the contexts of fewer would be much shorter than those that are evaluated
PRIOR_TOKENS = 5  # as if `UNFITTED_WEIGHT` had been best on that many more
BISECTION_STEPS = 40  # more than enough for a weight in float32


def split_held_out(config: NetworkConfig, tokens: Tokens) -> tuple[Tokens, list[Ids]]:
    """What is trained on and counted of a train split, shape (tokens,), and what chooses the weight of the mixture.

    The latter, some parts of shape (tokens,), is empty unless there is an expert whose weight is to be chosen, and the
    text is long enough.
    """
    length = min(len(tokens) // HELD_OUT_SHARE, MAX_HELD_OUT) // HELD_OUT_PARTS
    is_fitted = config.ngram_expert and not config.ngram_expert_weight
    if not is_fitted or length < MIN_PART or len(tokens) - HELD_OUT_PARTS * length <= config.block_size:
        return tokens, []
    starts = [(2 * part + 1) * len(tokens) // (2 * HELD_OUT_PARTS) - length // 2 for part in range(HELD_OUT_PARTS)]
    return WithoutParts(tokens, starts, length), [tokens[start : start + length] for start in starts]


def count_train_split(expert: NgramExpert, config: NetworkConfig, tokens: Tokens) -> None:
    """Give an n-gram expert the counts of a train split, shape (tokens,).

    Of a long split, as much is counted as for the n-gram models that a loss is compared with. All ranks, and any number
    of threads, get the same counts.
    """
    trained, _ = split_held_out(config, tokens)
    counted = torch.from_numpy(read_counted(trained).astype(np.int64))
    expert.set_counts(count_ngrams(counted, expert.vocab_size, expert.order))
    expert.set_weight(config.ngram_expert_weight or UNFITTED_WEIGHT)  # else that of the run in `init_from` would stay


def fit_weight(state: TrainState, held_out: list[Ids]) -> None:
    """Set the weight of the mixture to the best one for held-out parts, (tokens,) each, with the network as it is.

    All ranks get the weight that the main process finds. It stays as it is if the network gives no numbers, or if
    memory is too short.
    """
    expert = state.model.expert
    if expert is not None and held_out:
        (weight,) = state.group.all_reduce_sum(_find_weight(state, expert, held_out))
        if math.isfinite(weight):
            expert.set_weight(weight)


def _find_weight(state: TrainState, expert: NgramExpert, held_out: list[Ids]) -> float:
    """The weight on the main process, NaN if memory is too short for it; 0 on other ranks."""
    if not state.group.is_main_process:
        return 0.0
    try:
        return _best_weight(*_probabilities(state, expert, held_out))
    except (MemoryError, RuntimeError) as error:
        if not memory.is_out_of_memory(error):
            raise
    memory.free_memory(state.device)
    return math.nan


@torch.inference_mode()
def _probabilities(state: TrainState, expert: NgramExpert, held_out: list[Ids]) -> tuple[Tensor, Tensor]:
    """The probabilities of held-out tokens, shape (targets,), by the network alone and by the counts."""
    network = state.model.without_expert().eval()
    of_network, of_counts, block_size = [], [], network.config.block_size
    windows = (batching.all_windows(part, rows=len(part), block_size=block_size) for part in held_out)
    for x, y in itertools.chain.from_iterable(windows):
        idx, targets = devices.to_device(x, state.device), devices.to_device(y, state.device)[..., None]
        with devices.autocast(state.device, state.config.dtype):
            logits = network(idx)[0]
        of_network.append(logits.float().softmax(-1).gather(2, targets).flatten())
        of_counts.append(expert.probabilities(expert.contexts(idx), targets).flatten())
    return torch.cat(of_network), torch.cat(of_counts)


def _best_weight(of_network: Tensor, of_counts: Tensor) -> float:
    """The maximum a posteriori weight of the mixture, by bisection; NaN where there is no number for it.

    The prior is that of `PRIOR_TOKENS` more tokens. The log-likelihood is a concave function of the weight, so its
    slope says on which side the best one is.
    """
    p, q = of_network.cpu().double(), of_counts.cpu().double()
    low, high = 0.0, 1.0
    for _ in range(BISECTION_STEPS):
        weight = (low + high) / 2
        slope = ((q - p) / (p + weight * (q - p))).sum().item()
        slope += PRIOR_TOKENS * (UNFITTED_WEIGHT - weight) / (weight * (1 - weight))
        low, high = (weight, high) if slope > 0 else (low, weight)
    return weight if math.isfinite(slope) else math.nan
