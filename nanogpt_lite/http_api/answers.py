"""Generated texts in the form of OpenAI's API: whole, and as events of a stream."""

import json
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nanogpt_lite.generation.text_stream import Chunk
from nanogpt_lite.readout.plain_forward import top_tokens
from nanogpt_lite.readout.reading import Reading
from nanogpt_lite.tokenizers.base import Tokenizer

END_OF_STREAM = b"data: [DONE]\n\n"
IMPOSSIBLE = -9999.0  # the log-probability of what has the probability 0, which JSON has no number for


@dataclass
class Logprobs:
    """Log-probabilities of tokens, before temperature and filters, in the form of the API."""

    tokens: list[str] = field(default_factory=list)
    token_logprobs: list[float | None] = field(default_factory=list)  # None for the first token of a prompt
    top_logprobs: list[dict[str, float] | None] = field(default_factory=list)
    text_offset: list[int] = field(default_factory=list)  # where each token begins in the text, in characters

    def __bool__(self) -> bool:
        return bool(self.tokens)

    def extend(self, more: "Logprobs") -> None:
        """Add those of the tokens that follow."""
        for name, values in vars(more).items():
            getattr(self, name).extend(values)

    def take_until(self, end: int) -> "Logprobs":
        """Remove and return those of the tokens that begin before a place in the text."""
        number = sum(offset < end for offset in self.text_offset)
        taken = {name: values[:number] for name, values in vars(self).items()}
        for values in vars(self).values():
            del values[:number]
        return Logprobs(**taken)


@dataclass(frozen=True)
class Piece:
    """What is added to one of the texts."""

    index: int
    text: str
    logprobs: Logprobs | None = None
    finish_reason: str | None = None  # "stop" or "length" at the end


class PieceMaker:
    """Makes pieces of the chunks of all texts, and holds log-probabilities back until their text is certain."""

    def __init__(self, tokenizer: Tokenizer, num_texts: int, logprobs: int | None, *, offset: int) -> None:
        """`offset`: the length of what is returned before the texts, from whose beginning offsets count."""
        self._tokenizer, self._logprobs = tokenizer, logprobs
        self._decoders = [tokenizer.decoder() for _ in range(num_texts)]
        self._decoded = [offset] * num_texts  # lengths of the texts of all tokens, also of those held back
        self._released = [offset] * num_texts
        self._held_back = [Logprobs() for _ in range(num_texts)]
        self._is_finished = [False] * num_texts
        self.num_tokens = 0

    def add(self, chunks: Sequence[Chunk]) -> Iterator[Piece]:
        """The pieces of one step."""
        for index, chunk in enumerate(chunks):
            if chunk.token is not None:
                self.num_tokens += 1
            if self._is_finished[index]:
                continue
            if chunk.logits is not None and chunk.token is not None:
                self._hold_back(index, chunk.token, chunk.logits)
            self._released[index] += len(chunk.text)
            logprobs = None
            if self._logprobs is not None:
                if chunk.token is None:
                    self._end(index)
                logprobs = self._held_back[index].take_until(self._released[index])
            self._is_finished[index] = chunk.token is None or chunk.is_stopped  # no more text will come
            reason = ("stop" if chunk.is_stopped else "length") if self._is_finished[index] else None
            if chunk.text or logprobs or reason:
                yield Piece(index, chunk.text, logprobs, reason)

    def _hold_back(self, index: int, token: int, logits: Tensor) -> None:
        assert self._logprobs is not None
        log_probabilities = logits.float().log_softmax(-1).clamp(min=IMPOSSIBLE)
        top = top_tokens(log_probabilities, self._logprobs)
        text = self._decoders[index].decode([token])  # empty, if a character is not complete yet
        added = Logprobs(
            [text],
            [log_probabilities[token].item()],
            [self._by_text(top.ids.tolist(), top.probabilities.tolist())],
            [self._decoded[index]],
        )
        self._held_back[index].extend(added)
        self._decoded[index] += len(text)

    def _end(self, index: int) -> None:
        """The last token of a text that ends in the middle of a character has the replacement for it."""
        rest = self._decoders[index].decode([], final=True)
        tokens = self._held_back[index].tokens
        if rest and tokens:
            tokens[-1] += rest

    def _by_text(self, ids: Sequence[int], values: Sequence[float]) -> dict[str, float]:
        """Values of tokens by their texts. Several may have the text of an incomplete character: the likeliest wins."""
        by_text: dict[str, float] = {}
        for number, value in zip(ids, values, strict=True):
            by_text.setdefault(self._tokenizer.decode([number]), value)
        return by_text


def prompt_logprobs(reading: Reading, logprobs: int) -> Logprobs:
    """The log-probabilities of the tokens of a prompt."""
    texts = reading.next_tokens[:-1]
    values = reading.next_probabilities["model"][:-1, :logprobs].log().clamp(min=IMPOSSIBLE).tolist()
    top: list[dict[str, float] | None] = [None]
    for row_texts, row_values in zip(texts, values, strict=True):
        row: dict[str, float] = {}
        for text, value in zip(row_texts, row_values, strict=False):
            row.setdefault(text, value)
        top.append(row)
    offsets = torch.tensor([0, *map(len, reading.tokens)]).cumsum(0).tolist()[:-1]
    return Logprobs(list(reading.tokens), [None, *(-reading.surprise[1:]).clamp(min=IMPOSSIBLE).tolist()], top, offsets)


def merge_pieces(pieces: Iterable[Piece]) -> list[Piece]:
    """One piece for each text, with all that was added to it; in the order of the texts."""
    by_index: dict[int, list[Piece]] = {}
    for piece in pieces:
        by_index.setdefault(piece.index, []).append(piece)
    return [_merge(by_index[index]) for index in sorted(by_index)]


def _merge(pieces: Sequence[Piece]) -> Piece:
    """All pieces of one text as one."""
    logprobs = None
    if any(piece.logprobs is not None for piece in pieces):
        logprobs = Logprobs()
        for piece in pieces:
            logprobs.extend(piece.logprobs or Logprobs())
    return Piece(pieces[0].index, "".join(piece.text for piece in pieces), logprobs, pieces[-1].finish_reason)


class AnswerForm:
    """The form of the answers to one request: of /v1/completions, or of /v1/chat/completions."""

    def __init__(self, model: str, *, is_chat: bool) -> None:
        self.model, self.is_chat = model, is_chat
        self._id, self._created = uuid.uuid4().hex, int(time.time())
        self._has_begun: set[int] = set()  # the texts of which an event was made

    def whole(self, pieces: Sequence[Piece], prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
        """The answer with all texts."""
        merged = merge_pieces(pieces)
        if not self.is_chat:
            answer = {**self._head("text_completion"), "choices": [_choice(piece) for piece in merged]}
        else:
            choices = [
                {
                    "index": piece.index,
                    "message": {"role": "assistant", "content": piece.text},
                    "logprobs": None,
                    "finish_reason": piece.finish_reason,
                }
                for piece in merged
            ]
            answer = {**self._head("chat.completion"), "choices": choices}
        return {**answer, "usage": _usage(prompt_tokens, completion_tokens)}

    def event(self, piece: Piece) -> bytes:
        """An event of a stream."""
        if not self.is_chat:
            return encode_event({**self._head("text_completion"), "choices": [_choice(piece)]})
        # clients join the texts of all events, so the role comes once
        role = {} if piece.index in self._has_begun else {"role": "assistant"}
        self._has_begun.add(piece.index)
        delta = {**role, "content": piece.text}
        choice = {"index": piece.index, "delta": delta, "logprobs": None, "finish_reason": piece.finish_reason}
        return encode_event({**self._head("chat.completion.chunk"), "choices": [choice]})

    def usage_event(self, prompt_tokens: int, completion_tokens: int) -> bytes:
        """The event of a stream that counts tokens."""
        name = "chat.completion.chunk" if self.is_chat else "text_completion"
        return encode_event({**self._head(name), "choices": [], "usage": _usage(prompt_tokens, completion_tokens)})

    def _head(self, name: str) -> dict[str, Any]:
        prefix = "chatcmpl" if self.is_chat else "cmpl"
        return {"id": f"{prefix}-{self._id}", "object": name, "created": self._created, "model": self.model}


def error_body(message: str, kind: str = "invalid_request_error", param: str | None = None) -> dict[str, Any]:
    """An error in the form of the API."""
    return {"error": {"message": message, "type": kind, "param": param, "code": None}}


def encode_event(content: dict[str, Any]) -> bytes:
    """A server-sent event (WHATWG HTML, section 9.2), whose data is one line of JSON."""
    return b"data: " + json.dumps(content, ensure_ascii=False, allow_nan=False).encode() + b"\n\n"


def _choice(piece: Piece) -> dict[str, Any]:
    logprobs = vars(piece.logprobs) if piece.logprobs is not None else None
    return {"index": piece.index, "text": piece.text, "logprobs": logprobs, "finish_reason": piece.finish_reason}


def _usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}
