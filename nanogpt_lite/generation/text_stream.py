"""Drawing text: filters on the logits, and one iterator that generates token by token.

Row r of a call draws from (seed, r) alone, so the text of a row does not depend on how many there are.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from nanogpt_lite.config.options import SampleConfig
from nanogpt_lite.generation.generate import generate
from nanogpt_lite.model.gpt import GPT
from nanogpt_lite.tokenizers.base import Ids, Tokenizer


def stream_texts(model: GPT, tokenizer: Tokenizer, prompt: Ids, config: SampleConfig) -> Iterator[list[str]]:
    """What is new in each of `num_samples` texts, token by token: lists of `num_samples` pieces, some empty.

    `prompt` is the ids of the prompt, shape (T,); it is not repeated. A text ends before `stop`; the iterator
    ends when all have.
    """
    device = model.lm_head.weight.device
    ids = torch.from_numpy(prompt.astype(np.int64)).to(device)
    rows = [_TextStream(tokenizer, config.stop) for _ in range(config.num_samples)]
    for tokens in generate(model, ids.expand(config.num_samples, -1), config):
        yield [row.take(token) for row, token in zip(rows, tokens.tolist(), strict=True)]
        if all(row.ended for row in rows):
            return
    yield [row.finish() for row in rows]


def join_texts(pieces: Iterable[list[str]]) -> list[str]:
    """The whole texts that `stream_texts` gives in pieces."""
    return ["".join(row) for row in zip(*pieces, strict=True)]


class _TextStream:
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
