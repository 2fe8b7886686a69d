"""Drawing text: filters on the logits, and one iterator that generates token by token.

Row r of a call draws from (seed, r) alone, so the text of a row does not depend on how many there are.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from nanogpt_lite import runtime
from nanogpt_lite.config import SampleConfig
from nanogpt_lite.graphs import RecordedStep
from nanogpt_lite.model import GPT, KVCache
from nanogpt_lite.tokenizer import Ids, Tokenizer

DRAWS = 256  # random numbers made ahead at a time


@torch.inference_mode()
def generate(model: GPT, prompt: Tensor, config: SampleConfig, *, use_cache: bool = True) -> Iterator[Tensor]:
    """Token ids that follow `prompt`, one step at a time: `max_new_tokens` tensors of shape (B,).

    `prompt` is int64, (B, T) with T at least 1, on the model's device. Of a longer one the last `block_size`
    tokens count. When the window of `block_size` tokens is full, its last half is kept and read anew, the same
    with a cache and without. Up to there the text is that of nanoGPT's and Hugging Face's generate.
    """
    model.eval()
    block_size = model.config.block_size
    window, fresh = prompt[:, -block_size:], True
    rows, draws = prompt.size(0), torch.empty(0)
    cache = KVCache(model, rows, window.size(1) + config.max_new_tokens) if use_cache else None
    recorded = RecordedStep(model, cache) if cache is not None and prompt.is_cuda else None
    for number in range(config.max_new_tokens):
        if number % DRAWS == 0:
            draws = uniform(config.seed, rows, number, device=prompt.device)
        if window.size(1) > block_size:
            window, fresh = window[:, -max(block_size // 2, 1) :], True
        if cache is None or fresh:
            logits, fresh = prefill(model, window, cache), False
        elif recorded is not None:
            logits = recorded(window[:, -1:])
        else:
            logits = decode_one_token(model, window[:, -1:], cache)
        token = choose(logits, draws[:, number % DRAWS], config)
        yield token
        window = torch.cat([window, token[:, None]], dim=1)


def prefill(model: GPT, window: Tensor, cache: KVCache | None) -> Tensor:
    """Read a whole window (B, T), and nothing before it: logits (B, V) for the token after it."""
    if cache is not None:
        cache.clear()
    logits: Tensor = model(window, cache=cache)[0]
    return logits[:, -1].float()


def decode_one_token(model: GPT, token: Tensor, cache: KVCache) -> Tensor:
    """Read one more token (B, 1): logits (B, V) for the token after it."""
    with runtime.few_rows(model.lm_head.weight.dtype):
        logits: Tensor = model(token, cache=cache)[0]
    return logits[:, -1].float()


def choose(logits: Tensor, draws: Tensor, config: SampleConfig) -> Tensor:
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


def uniform(seed: int, rows: int, first: int, *, device: torch.device) -> Tensor:
    """Numbers `first` to `first + DRAWS - 1` of each row's own sequence in [0, 1), (rows, DRAWS), float32."""
    bits = [np.random.Philox(key=[seed, row], counter=first // 4).random_raw(DRAWS) for row in range(rows)]
    # 24 bits: as many as float32 holds, so that none is rounded up to 1
    return torch.from_numpy((np.array(bits) >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)).to(device)


def stream_texts(model: GPT, tokenizer: Tokenizer, prompt: Ids, config: SampleConfig) -> Iterator[list[str]]:
    """What is new in each of `num_samples` texts, token by token: lists of `num_samples` pieces, some empty.

    `prompt` is the ids of the prompt, shape (T,); it is not repeated. A text ends before `stop`; the iterator
    ends when all have.
    """
    device = model.lm_head.weight.device
    ids = torch.from_numpy(prompt.astype(np.int64)).to(device)
    rows = [_Row(tokenizer, config.stop) for _ in range(config.num_samples)]
    for tokens in generate(model, ids.expand(config.num_samples, -1), config):
        yield [row.take(token) for row, token in zip(rows, tokens.tolist(), strict=True)]
        if all(row.ended for row in rows):
            return
    yield [row.finish() for row in rows]


def texts(pieces: Iterable[list[str]]) -> list[str]:
    """The whole texts that `stream_texts` gives in pieces."""
    return ["".join(row) for row in zip(*pieces, strict=True)]


class _Row:
    """One text as it comes: holds back what may turn out to be part of a character or of the stop text."""

    def __init__(self, tokenizer: Tokenizer, stop: str) -> None:
        self.decoder = tokenizer.decoder()
        self.stop = stop
        self.held = ""
        self.ended = False

    def take(self, token: int) -> str:
        if self.ended:
            return ""
        self.held += self.decoder.decode([token])
        if self.stop and self.stop in self.held:
            self.ended = True
            text, self.held = self.held.split(self.stop)[0], ""
            return text
        return self._release(_overlap(self.held, self.stop))

    def finish(self) -> str:
        if self.ended:
            return ""
        self.held += self.decoder.decode([], final=True)
        return self._release(0)

    def _release(self, keep: int) -> str:
        cut = len(self.held) - keep
        text, self.held = self.held[:cut], self.held[cut:]
        return text


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` with which `stop` begins."""
    return next((n for n in range(min(len(text), len(stop)), 0, -1) if text.endswith(stop[:n])), 0)
