"""A text and how much each token surprised the network: in colours of a terminal, as HTML for notebooks, as a table."""

import html
import math
import unicodedata
from collections.abc import Iterator, Sequence

from torch import Tensor

LEVELS = {0.5: "", 1.0: "48;5;230", 2.0: "48;5;222", 4.0: "48;5;209", math.inf: "48;5;196"}
"""Surprise in nats, below which a token has a colour: the code of a background of 256 colours."""

_BLACK = "38;5;16"
_RESET = "\x1b[0m"
MAX_COLOURED = 6.0  # nats: more surprise has the same colour in HTML


def as_ansi(tokens: Sequence[str], surprise: Tensor) -> str:
    """The text with ANSI escape codes. Control characters in the text itself are replaced by signs for them."""
    return "".join(_paint(text, _code(value)) for text, value in _characters(tokens, surprise))


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
    for token, value in _characters(tokens, surprise):
        opacity = 0.0 if math.isnan(value) else min(value / MAX_COLOURED, 1.0)
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


def _characters(tokens: Sequence[str], surprise: Tensor) -> Iterator[tuple[str, float]]:
    """Texts and their surprise: that of a character of several tokens is the sum of theirs. NaN if it is not known."""
    total = math.nan
    for token, value in zip(tokens, surprise.tolist(), strict=True):
        known = [number for number in (total, value) if not math.isnan(number)]
        total = sum(known) if known else math.nan
        if token:
            yield token, total
            total = math.nan


def _visible(character: str) -> str:
    """A character that a terminal may print: a control character as the picture of it, but line breaks and tabs."""
    if unicodedata.category(character) != "Cc" or character in "\n\t":
        return character
    return chr(0x2400 + ord(character)) if ord(character) < 0x20 else "␡" if character == "\x7f" else "\ufffd"


def _code(value: float) -> str:
    return (
        "" if math.isnan(value) else next(code for level, code in LEVELS.items() if value < level or math.isinf(level))
    )


def _paint(text: str, code: str) -> str:
    """A text on a background, which ends before each line break: terminals would fill the rest of the line with it."""
    text = "".join(_visible(character) for character in text)
    if not code or not text:
        return text
    return "\n".join(f"\x1b[{_BLACK};{code}m{line}{_RESET}" if line else "" for line in text.split("\n"))
