"""What a network expects after each token of a text, and how well it had expected the one that follows.

A text may be longer than the context. Then it is read as `generation.generate` continues it: when the context is full,
its last half is kept, and reading goes on. So a text that was generated is read in the contexts that it was written in,
if its prompt fits into one context.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nanogpt_lite.config.options import FilterConfig
from nanogpt_lite.generation.sampling import SMALLEST_TEMPERATURE, filter_logits
from nanogpt_lite.model.gpt import GPT
from nanogpt_lite.readout.plain_forward import ForwardPass, TopTokens, forward_pass, logit_lens, top_tokens

FILTERS = {"temperature": (), "top_k": ("top_k",), "top_p": ("top_k", "top_p"), "min_p": ("top_k", "top_p", "min_p")}
"""For each stage of sampling, in their order, the filters that have been applied after it."""

STAGES = ("network", "expert", "model", *FILTERS)
"""The probabilities that are given for a next token: of the network alone, of the n-gram expert alone (if there is
one), of what is sampled from (the mixture of both), and after the temperature and each filter."""


@dataclass(frozen=True)
class Window:
    """Tokens that were computed together, as one context of T tokens."""

    start: int  # the position in the text of its first token
    first_read: int  # the first position of the text whose prediction of the next token is from this window
    attention: Tensor | None  # (L, H, T, T), if it was asked for
    lens: TopTokens | None  # (L + 1, T, K), if it was asked for


@dataclass(frozen=True)
class Expectation:
    """What a network expects after each of T tokens.

    Tensors are float32 unless they are ids (int64). What is of the token that follows is NaN, or -1, after the last
    one.
    """

    top_ids: Tensor  # (T, K): the likeliest tokens, before any filter
    of_top: dict[str, Tensor]  # (T, K): their probabilities, at each of `STAGES` that there is
    of_following: dict[str, Tensor]  # (T,): the probability of the token that follows, at each of these stages
    surprise: Tensor  # (T,): -ln of the probability of the token that follows, in nats
    rank: Tensor  # (T,) int64: how many tokens are likelier than the one that follows
    expert_share: Tensor | None  # (T,): of the probability of the token that follows, the part of the n-gram expert
    expert_context: Tensor | None  # (T,) int64: how many of the last tokens the n-gram expert knows as a context
    ngram_share: Tensor | None  # (T,): of what enters the first block, the part of the n-gram embeddings


def read_windows(
    model: GPT, idx: Tensor, config: FilterConfig, top: int, *, attention: bool, lens: bool
) -> Iterator[tuple[Window, Expectation]]:
    """Read tokens (T,): each window, and what the network expects after its tokens from `first_read` on.

    The windows together have one expectation for each token of the text. `config`: the filters. `top`: K, how many of
    the likeliest tokens are given. `attention`, `lens`: whether the windows have them.
    """
    for start, end, first_read in windows(len(idx), model.config.block_size):
        tokens = idx[start:end]
        forward = forward_pass(model, tokens)
        window = Window(
            start,
            first_read,
            forward.attention if attention else None,
            logit_lens(model, forward.residuals, top) if lens else None,
        )
        yield window, _expect(model, tokens, idx[start + 1 : end + 1], forward, first_read - start, config, top)


def windows(length: int, block_size: int) -> Iterator[tuple[int, int, int]]:
    """The contexts in which a text of `length` tokens is read: start, end, and the first position that is new in it."""
    kept = max(block_size // 2, 1)
    start = first_read = 0
    while first_read < length:
        end = min(start + block_size, length)
        yield start, end, first_read
        start, first_read = end + 1 - kept, end  # the token after a full context, and those before it that are kept


@torch.no_grad()
def _expect(
    model: GPT, tokens: Tensor, following: Tensor, forward: ForwardPass, first: int, config: FilterConfig, top: int
) -> Expectation:
    """What is expected after `tokens` (T,) from `first` on. `following`: the tokens after them; the last may miss."""
    logits = forward.logits[first:]
    log_probabilities = logits.log_softmax(-1)  # (N, V)
    stages = {"network": log_probabilities.exp()}
    expert, context = model.expert, None
    if expert is not None:
        contexts = expert.contexts(tokens[None])[:, first:]  # (1, N, K)
        context = expert.context_lengths(contexts)[0]
        stages["expert"] = expert.distribution(contexts)[0]
        log_probabilities = logits = expert.mix_log_probs(log_probabilities, stages["expert"])
    stages["model"] = log_probabilities.exp()
    top_ids = top_tokens(stages["model"], top).ids
    targets = following[first:, None]  # (N, 1), or (N - 1, 1) at the end of the text
    known = len(targets)
    chosen = log_probabilities[:known].gather(1, targets)
    rank = (log_probabilities[:known] > chosen).sum(1)
    of_top, of_following = {}, {}
    for name, probabilities in itertools.chain(stages.items(), filter_stages(logits, config)):
        of_top[name] = probabilities.gather(1, top_ids)
        of_following[name] = _pad(probabilities[:known].gather(1, targets)[:, 0], len(logits), math.nan)
    share = expert.weight * of_following["expert"] / of_following["model"] if expert is not None else None
    return Expectation(
        top_ids,
        of_top,
        of_following,
        surprise=_pad(-chosen[:, 0], len(logits), math.nan),
        rank=_pad(rank, len(logits), -1),
        expert_share=share,
        expert_context=context,
        ngram_share=forward.ngram_share[first:] if forward.ngram_share is not None else None,
    )


def _pad(values: Tensor, length: int, unknown: float) -> Tensor:
    """Values (N,) with what is unknown after the last token, if it is (`length` N + 1)."""
    return torch.cat([values, values.new_full((length - len(values),), unknown)])


def filter_stages(logits: Tensor, config: FilterConfig) -> Iterator[tuple[str, Tensor]]:
    """The probabilities (N, V) after the temperature, and after each filter; the last ones are those sampled from."""
    if config.temperature == 0:  # the likeliest token, whatever the filters are
        certain = torch.zeros_like(logits).scatter(1, logits.argmax(1, keepdim=True), 1.0)
        yield from dict.fromkeys(FILTERS, certain).items()
        return
    scaled = logits / max(config.temperature, SMALLEST_TEMPERATURE)
    off: dict[str, Any] = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
    for name, applied in FILTERS.items():
        others_off = {option: value for option, value in off.items() if option not in applied}
        yield name, filter_logits(scaled, dataclasses.replace(config, **others_off)).softmax(-1)
