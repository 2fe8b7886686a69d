"""A text and how much each token surprised the network: in colours of a terminal, as HTML for notebooks, as a table."""

import html
import math
from collections.abc import Sequence

from torch import Tensor

LEVELS = {0.5: "", 1.0: "48;5;230", 2.0: "48;5;222", 4.0: "48;5;209", math.inf: "48;5;196"}
"""Surprise in nats, below which a token has a colour: the code of a background of 256 colours."""

_BLACK = "38;5;16"
_RESET = "\x1b[0m"
MOST_OPAQUE = 6.0  # nats: more surprise has the same colour in HTML


def as_ansi(tokens: Sequence[str], surprise: Tensor) -> str:
    """The text with ANSI escape codes. Escape characters in the text itself are replaced by a sign for them."""
    parts = (_paint(token, _code(value)) for token, value in zip(tokens, surprise.tolist(), strict=True))
    return "".join(parts)


def ansi_legend() -> str:
    """A line that says what the colours mean."""
    names, below = [], 0.0
    for level, code in LEVELS.items():
        name = f" {below:g} to {level:g} " if level < math.inf else f" {below:g} or more "
        names.append(_paint(name, code))
        below = level
    return f"surprise in nats: {''.join(names)}"


def as_html(tokens: Sequence[str], surprise: Tensor) -> str:
    """The text as an HTML element; the surprise of a token is the title of its span."""
    spans = []
    for token, value in zip(tokens, surprise.tolist(), strict=True):
        opacity = 0.0 if math.isnan(value) else min(value / MOST_OPAQUE, 1.0)
        title = "" if math.isnan(value) else f' title="{value:.2f} nats"'
        spans.append(f'<span style="background: rgba(230, 70, 30, {opacity:.2f})"{title}>{html.escape(token)}</span>')
    return f'<pre style="white-space: pre-wrap">{"".join(spans)}</pre>'


def as_table(
    tokens: Sequence[str], surprise: Tensor, expected: Sequence[Sequence[tuple[str, float]]], *, width: int = 12
) -> str:
    """A line for each token: its surprise, and what was expected at its place, with probabilities."""
    lines = [f"{'surprise':>8}  {'token':<{width}}  expected"]
    for token, value, alternatives in zip(tokens, surprise.tolist(), expected, strict=True):
        shown = "" if math.isnan(value) else f"{value:.2f}"
        likeliest = ", ".join(f"{text!r} {probability:.2f}" for text, probability in alternatives)
        lines.append(f"{shown:>8}  {token!r:<{width}}  {likeliest}".rstrip())
    return "\n".join(lines)


def _code(value: float) -> str:
    return (
        "" if math.isnan(value) else next(code for level, code in LEVELS.items() if value < level or math.isinf(level))
    )


def _paint(text: str, code: str) -> str:
    """A text on a background, which ends before each line break: terminals would fill the rest of the line with it."""
    text = text.replace("\x1b", "␛")
    if not code or not text:
        return text
    return "\n".join(f"\x1b[{_BLACK};{code}m{line}{_RESET}" if line else "" for line in text.split("\n"))
