"""The result of reading a text with a network: per token in the text, and per layer and head.

What is computed is in `expectations` and `plain_forward`. For the shape letters see `plain_forward`.
"""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nanogpt_lite.config.options import FilterConfig
from nanogpt_lite.errors import UserError
from nanogpt_lite.model.gpt import GPT
from nanogpt_lite.readout import coloured_text, figures
from nanogpt_lite.readout.expectations import STAGES, Expectation, Window, read_windows
from nanogpt_lite.readout.plain_forward import TopTokens
from nanogpt_lite.tokenizers.base import Ids, Tokenizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # an optional dependency


@dataclass(frozen=True, repr=False)
class Reading:
    """What a network makes of a text of T tokens. Tensors are on the CPU, float32 unless they are ids or ranks (int64).

    Of each token: `surprise`, `rank`, `probabilities` and `expert_share` say how well the network had expected it. The
    first token has none (NaN, and rank -1), as nothing comes before it. After each token: `next_tokens`,
    `next_probabilities` and `expert_context` say what the network expects next, without the text that follows.

    In a notebook, a `Reading` is shown as its text, coloured by surprise.
    """

    tokens: list[str]  # T texts, which together are the text; empty where a character is not complete yet
    ids: Tensor  # (T,) int64
    surprise: Tensor  # (T,): -ln of the probability of the token, in nats
    rank: Tensor  # (T,) int64: how many tokens the network held for likelier
    probabilities: dict[str, Tensor]  # of each of `STAGES`, (T,): the probability of the token
    expert_share: Tensor | None  # (T,): of the probability of the token, the n-gram expert's part; None without one
    expert_context: Tensor | None  # (T,) int64: how many of the tokens up to this one the expert knows as a context
    expert_weight: float | None  # the weight of the n-gram expert in the mixture; None without one
    ngram_share: Tensor | None  # (T,): of what enters the first block, the n-gram embeddings' part; None without them
    next_tokens: list[list[str]]  # (T, K): the likeliest ones after each token, before any filter
    next_ids: Tensor  # (T, K) int64
    next_probabilities: dict[str, Tensor]  # of each of `STAGES`, (T, K)
    windows: list[Window]  # the contexts in which the text was read: one, if it is not longer than `block_size`

    @property
    def text(self) -> str:
        """The text that was read."""
        return "".join(self.tokens)

    @property
    def mean_surprise(self) -> float:
        """The mean of `surprise`, in nats per token: the loss on this text; NaN for a single token."""
        return self.surprise[1:].mean().item()

    @property
    def attention(self) -> Tensor:
        """How much of its attention each token gives to each token, (L, H, T, T); 0 outside of the token's context.

        Each row sums to 1. It grows with the square of the text: for a long one, take that of one of the `windows`.
        """
        parts = [(window, window.attention) for window in self.windows if window.attention is not None]
        assert parts, "the text was read without attention"
        T, (L, H) = len(self.ids), parts[0][1].shape[:2]
        attention = torch.zeros(L, H, T, T)
        for window, weights in parts:
            end = window.start + weights.size(-1)
            rows = weights[:, :, window.first_read - window.start :]
            attention[:, :, window.first_read : end, window.start : end] = rows
        return attention

    @property
    def lens(self) -> TopTokens:
        """The logit lens: ids and probabilities (L + 1, T, K) of the likeliest next tokens, as of each layer.

        Layer 0 is what enters the first block. The last layer is the output of the network, without an n-gram expert.
        """
        parts = [
            [tensor[:, window.first_read - window.start :] for tensor in window.lens]
            for window in self.windows
            if window.lens is not None
        ]
        assert parts, "the text was read without the lens"
        return TopTokens(*(torch.cat(tensors, dim=1) for tensors in zip(*parts, strict=True)))

    def to_dict(self) -> dict[str, Any]:
        """The tokens, and what is expected after each, as JSON; None for what is not known."""
        return {
            "text": self.text,
            "mean_surprise": _number(self.mean_surprise),
            **({} if self.expert_weight is None else {"expert_weight": self.expert_weight}),
            "tokens": [self._token(position) for position in range(len(self.ids))],
        }

    def _token(self, position: int) -> dict[str, Any]:
        ids, texts = self.next_ids[position].tolist(), self.next_tokens[position]
        stages = {name: p[position].tolist() for name, p in self.next_probabilities.items()}
        following = [
            {"token": text, "id": number, **{name: values[place] for name, values in stages.items()}}
            for place, (number, text) in enumerate(zip(ids, texts, strict=True))
        ]
        shares = {"expert_share": self.expert_share, "ngram_share": self.ngram_share}
        return {
            "token": self.tokens[position],
            "id": int(self.ids[position]),
            "surprise": _number(self.surprise[position].item()),
            "rank": int(self.rank[position]) if position else None,
            "probabilities": {name: _number(p[position].item()) for name, p in self.probabilities.items()},
            **{name: _number(tensor[position].item()) for name, tensor in shares.items() if tensor is not None},
            **({} if self.expert_context is None else {"expert_context": int(self.expert_context[position])}),
            "next": following,
        }

    def expected_instead(self, number: int = 3) -> list[list[tuple[str, float]]]:
        """For each token, the likeliest tokens at its place and their probabilities; none for the first token."""
        probabilities = self.next_probabilities["model"][:-1, :number].tolist()
        pairs = [list(zip(*row, strict=False)) for row in zip(self.next_tokens, probabilities, strict=False)]
        return [[], *pairs]

    def plot_surprise(self) -> "Figure":
        """A matplotlib Figure: the surprise of each token. `UserError` without matplotlib."""
        return figures.surprise_figure(self.tokens, self.surprise)

    def plot_attention(self, layer: int) -> "Figure":
        """A matplotlib Figure: the attention of each head of a layer, from 0.

        Of a text that is longer than the context, its first context. `UserError` without matplotlib, or if there is no
        such layer.
        """
        weights = self.windows[0].attention
        assert weights is not None, "the text was read without attention"
        if not 0 <= layer < len(weights):
            raise UserError(f"there is no layer {layer}; give 0 to {len(weights) - 1}")
        weights = weights[layer]
        return figures.attention_figure(self.tokens[: weights.size(-1)], weights, title=f"layer {layer}")

    def __repr__(self) -> str:
        if len(self.ids) == 1:
            return "<Reading of 1 token, which has no surprise>"
        return f"<Reading of {len(self.ids)} tokens, {self.mean_surprise:.2f} nats per token>"

    def _repr_html_(self) -> str:
        return coloured_text.as_html(self.tokens, self.surprise)


def read_steps(
    model: GPT,
    tokenizer: Tokenizer,
    ids: Ids,
    config: FilterConfig,
    top: int,
    *,
    attention: bool = True,
    lens: bool = True,
) -> Generator[Reading | None, None, None]:
    """Read the tokens (T,) of a text. Yields None after each of its contexts, and at the end the reading.

    `config`: the filters. `top`: K, how many of the likeliest tokens are given. Without `attention` or `lens`, the
    result does not have it: for a long text, they need much more memory than the rest.
    """
    idx = torch.from_numpy(ids.astype("int64")).to(model.lm_head.weight.device)
    windows, expected = [], []
    for window, expectation in read_windows(model, idx, config, top, attention=attention, lens=lens):
        windows.append(_on_cpu(window))
        expected.append(expectation)
        yield None
    weight = model.expert.weight.item() if model.expert is not None else None
    yield _reading(tokenizer, ids, idx, windows, expected, weight)


def _reading(
    tokenizer: Tokenizer,
    ids: Ids,
    idx: Tensor,
    windows: list[Window],
    expected: Sequence[Expectation],
    expert_weight: float | None,
) -> Reading:
    next_ids = torch.cat([e.top_ids for e in expected]).cpu()
    stages = [name for name in STAGES if name in expected[0].of_top]
    expert_shares = [e.expert_share for e in expected if e.expert_share is not None]
    expert_contexts = [e.expert_context for e in expected if e.expert_context is not None]
    ngram_shares = [e.ngram_share for e in expected if e.ngram_share is not None]
    decoder = tokenizer.decoder()
    tokens = [decoder.decode([number]) for number in ids.tolist()]
    tokens[-1] += decoder.decode([], final=True)
    return Reading(
        tokens=tokens,
        ids=idx.cpu(),
        surprise=_of_tokens([e.surprise for e in expected], math.nan),
        rank=_of_tokens([e.rank for e in expected], -1),
        probabilities={name: _of_tokens([e.of_following[name] for e in expected], math.nan) for name in stages},
        expert_share=_of_tokens(expert_shares, math.nan) if expert_shares else None,
        expert_context=torch.cat(expert_contexts).cpu() if expert_contexts else None,
        expert_weight=expert_weight,
        ngram_share=torch.cat(ngram_shares).cpu() if ngram_shares else None,
        next_tokens=[[tokenizer.decode([number]) for number in row] for row in next_ids.tolist()],
        next_ids=next_ids,
        next_probabilities={name: torch.cat([e.of_top[name] for e in expected]).cpu() for name in stages},
        windows=windows,
    )


def _on_cpu(window: Window) -> Window:
    """A window whose tensors are on the CPU."""
    attention = window.attention.cpu() if window.attention is not None else None
    lens = TopTokens(*(tensor.cpu() for tensor in window.lens)) if window.lens is not None else None
    return Window(window.start, window.first_read, attention, lens)


def _of_tokens(of_following: list[Tensor], unknown: float) -> Tensor:
    """What belongs to the token after each (T,), as what belongs to each token; unknown of the first one."""
    values = torch.cat(of_following).cpu()
    return torch.cat([values.new_full((1,), unknown), values[:-1]])


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
