"""Decode generated tokens to text as they come, and end a text before the `stop` text."""

from collections.abc import Generator, Iterable

import numpy as np
import torch

from nanogpt_lite.config.options import SampleConfig
from nanogpt_lite.generation.cuda_graph import Recordings
from nanogpt_lite.generation.generate import generate
from nanogpt_lite.model.gpt import GPT
from nanogpt_lite.tokenizers.base import Ids, Tokenizer


def stream_texts(
    model: GPT, tokenizer: Tokenizer, prompt: Ids, config: SampleConfig, *, recordings: Recordings | None = None
) -> Generator[list[str], None, None]:
    """Generate `num_samples` texts and yield, for each step, a list with the new chunk of each text (often empty).

    `prompt` is the token ids of the prompt, shape (T,); it is not repeated in the texts. A text ends before `stop`;
    the iterator ends when all texts have ended. For `recordings` see `generate`.
    """
    ids = torch.from_numpy(prompt.astype(np.int64))
    streams = [_TextStream(tokenizer, config.stop) for _ in range(config.num_samples)]
    for tokens in generate(model, ids.expand(config.num_samples, -1), config, recordings=recordings):
        yield [stream.feed(token) for stream, token in zip(streams, tokens.tolist(), strict=True)]
        if all(stream.is_done for stream in streams):
            return
    yield [stream.flush() for stream in streams]


def join_texts(chunks: Iterable[list[str]]) -> list[str]:
    """Return the whole texts, joined from the chunks of `stream_texts`.

    >>> join_texts([["RO", "JU"], ["MEO", "LIET"]])
    ['ROMEO', 'JULIET']
    """
    return ["".join(text_chunks) for text_chunks in zip(*chunks, strict=True)]


class _TextStream:
    """Tokens of one text in, chunks of text out.

    Characters whose bytes are incomplete, and a text that may be the beginning of `stop`, are held back until the next
    tokens decide.
    """

    def __init__(self, tokenizer: Tokenizer, stop: str) -> None:
        self._decoder = tokenizer.decoder()
        self._stop = stop
        self._buffer = ""  # decoded, but held back
        self.is_done = False

    def feed(self, token: int) -> str:
        """Add a token and return the text that is now certain."""
        if self.is_done:
            return ""
        self._buffer += self._decoder.decode([token])
        if self._stop and self._stop in self._buffer:
            self.is_done = True
            text, self._buffer = self._buffer.split(self._stop)[0], ""
            return text
        return self._release(hold_back=_partial_stop_length(self._buffer, self._stop))

    def flush(self) -> str:
        """Return the text that was held back; no more tokens will come."""
        if self.is_done:
            return ""
        self._buffer += self._decoder.decode([], final=True)
        return self._release(hold_back=0)

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
