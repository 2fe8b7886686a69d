"""Decode generated tokens to text as they come, and end a text before the `stop` text."""

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nanogpt_lite.config.options import SampleConfig
from nanogpt_lite.generation.cuda_graph import Recordings
from nanogpt_lite.generation.generate import generate, generate_with_logits
from nanogpt_lite.model.gpt import GPT
from nanogpt_lite.tokenizers.base import Ids, Tokenizer


class Chunk(NamedTuple):
    """What one step adds to one text."""

    text: str  # often empty
    token: int | None = None  # that was chosen; None if the text has ended before
    logits: Tensor | None = None  # (V,), from which it was chosen, if they were asked for
    is_stopped: bool = False  # whether the text has ended before a stop text


def stream_texts(
    model: GPT, tokenizer: Tokenizer, prompt: Ids, config: SampleConfig, *, recordings: Recordings | None = None
) -> Generator[list[str], None, None]:
    """Generate `num_samples` texts and yield, for each step, a list with the new chunk of each text (often empty).

    `prompt` is the token ids of the prompt, shape (T,); it is not repeated in the texts. A text ends before `stop`;
    the iterator ends when all texts have ended. For `recordings` see `generate`.
    """
    return texts_of(stream_chunks(model, tokenizer, prompt, config, recordings=recordings))


def texts_of(steps: Generator[list[Chunk], None, None]) -> Generator[list[str], None, None]:
    """The texts of chunks, step by step."""
    with closing(steps):
        for chunks in steps:
            yield [chunk.text for chunk in chunks]


def stream_chunks(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: Ids,
    config: SampleConfig,
    stops: Sequence[str] | None = None,
    *,
    with_logits: bool = False,
    recordings: Recordings | None = None,
    is_over: Callable[[], bool] = lambda: False,
) -> Generator[list[Chunk], None, None]:
    """Like `stream_texts`, with all that a step adds.

    `stops`: any number of stop texts in place of `config.stop`. `with_logits`: also the logits of each token, for which
    nothing is recorded. `is_over` is asked after each token: when it is true, no more are generated. The last step has
    no tokens, if not all texts have ended before a stop text.
    """
    ids = torch.from_numpy(prompt.astype(np.int64)).expand(config.num_samples, -1)
    if stops is None:
        stops = [config.stop] if config.stop else []
    streams = [_TextStream(tokenizer, stops) for _ in range(config.num_samples)]
    if with_logits:
        steps: Generator[tuple[Tensor, Tensor | None], None, None] = generate_with_logits(model, ids, config)
    else:
        steps = ((tokens, None) for tokens in generate(model, ids, config, recordings=recordings))
    with closing(steps):
        for tokens, logits in steps:
            rows = [None] * len(streams) if logits is None else list(logits)
            yield [stream.feed(*step) for stream, *step in zip(streams, tokens.tolist(), rows, strict=True)]
            if all(stream.is_stopped for stream in streams):
                return
            if is_over():
                break
    yield [stream.flush() for stream in streams]


def join_texts(chunks: Iterable[list[str]]) -> list[str]:
    """Return the whole texts, joined from the chunks of `stream_texts`.

    >>> join_texts([["RO", "JU"], ["MEO", "LIET"]])
    ['ROMEO', 'JULIET']
    """
    return ["".join(text_chunks) for text_chunks in zip(*chunks, strict=True)]


class _TextStream:
    """Tokens of one text in, chunks of text out.

    Characters whose bytes are incomplete, and a text that may be the beginning of a stop text, are held back until the
    next tokens decide.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._decoder = tokenizer.decoder()
        self._stops = stops
        self._buffer = ""  # decoded, but held back
        self.is_stopped = False

    def feed(self, token: int, logits: Tensor | None) -> Chunk:
        """Add a token; the text that is now certain."""
        if self.is_stopped:
            return Chunk("", is_stopped=True)
        self._buffer += self._decoder.decode([token])
        if ends := [self._buffer.index(stop) for stop in self._stops if stop in self._buffer]:
            self.is_stopped = True
            return Chunk(self._buffer[: min(ends)], token, logits, is_stopped=True)
        hold_back = max((_partial_stop_length(self._buffer, stop) for stop in self._stops), default=0)
        return Chunk(self._release(hold_back=hold_back), token, logits)

    def flush(self) -> Chunk:
        """The text that was held back; no more tokens will come."""
        if self.is_stopped:
            return Chunk("", is_stopped=True)
        self._buffer += self._decoder.decode([], final=True)
        return Chunk(self._release(hold_back=0))

    def _release(self, *, hold_back: int) -> str:
        end = len(self._buffer) - hold_back
        text, self._buffer = self._buffer[:end], self._buffer[end:]
        return text


def _partial_stop_length(text: str, stop: str) -> int:
    """Return the length of the longest suffix of `text` that is a prefix of `stop`."""
    return next((n for n in range(min(len(text), len(stop)), 0, -1) if text.endswith(stop[:n])), 0)


def print_samples(stream: Iterable[list[str]]) -> list[str]:
    """Print samples and return them.

    `stream` yields the next text of each sample, as `stream_batch` does. The first sample is printed while it is
    generated; the others follow it in order, after a line of dashes each.
    """
    parts: list[list[str]] = []
    for new in stream:
        print(new[0], end="", flush=True)
        parts.append(new)
    print()
    samples = ["".join(texts) for texts in zip(*parts, strict=True)]
    for sample in samples[1:]:
        print("---------------")
        print(sample)
    return samples
