"""A loss in nats per token in the units of other programs and papers. See `trainer.evaluation` for the loss itself."""

import math
from dataclasses import dataclass

MAX_EXPONENT = 700  # exp of more overflows: a training that diverged


@dataclass(frozen=True, kw_only=True)
class TextMeasures:
    """What a loss means for a text. Per character and per byte it is comparable between tokenizers, per token not."""

    perplexity: float  # per token
    nats_per_character: float
    bits_per_character: float
    bits_per_byte: float  # of UTF-8


def measure_text(loss: float, *, n_tokens: int, n_chars: int, n_bytes: int) -> TextMeasures:
    """The measures of a text of `n_tokens` tokens, for a finite mean loss in nats per token.

    `n_chars` and `n_bytes` are the sizes of the whole text. The first token, which has no token before it from which it
    could be predicted, counts as an average one: so a loss per character of a character tokenizer is the loss itself.

    >>> measures = measure_text(math.log(8), n_tokens=100, n_chars=300, n_bytes=400)  # tokens of 3 bits each
    >>> round(measures.perplexity, 6), round(measures.bits_per_character, 6), round(measures.bits_per_byte, 6)
    (8.0, 1.0, 0.75)
    """
    nats = loss * n_tokens
    return TextMeasures(
        perplexity=math.exp(min(loss, MAX_EXPONENT)),
        nats_per_character=nats / n_chars,
        bits_per_character=nats / n_chars / math.log(2),
        bits_per_byte=nats / n_bytes / math.log(2),
    )
