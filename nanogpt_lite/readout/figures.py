"""Figures of a reading, for notebooks: surprise along the text, and attention as matrices."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from nanogpt_lite.tracking.plots import notebook_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # an optional dependency

MAX_LABELS = 80  # of tokens on an axis; more would overlap
HEADS_PER_ROW = 4


def surprise_figure(tokens: Sequence[str], surprise: Tensor) -> "Figure":
    """Bars of the surprise (T,) of each token, in nats. `UserError` without matplotlib."""
    figure = notebook_figure((min(3 + 0.16 * len(tokens), 24), 3))
    axes = figure.subplots()
    axes.bar(range(len(tokens)), surprise.nan_to_num().tolist(), color="tab:red", alpha=0.7)
    axes.set(ylabel="surprise (nats)", xlim=(-0.5, len(tokens) - 0.5))
    if len(tokens) <= MAX_LABELS:
        axes.set_xticks(range(len(tokens)), labels(tokens), family="monospace")
    return figure


def attention_figure(tokens: Sequence[str], weights: Tensor, title: str) -> "Figure":
    """A matrix for each head of attention (H, T, T): a row is a token, and its columns those that it attends to."""
    heads, columns = len(weights), min(len(weights), HEADS_PER_ROW)
    rows = math.ceil(heads / columns)
    figure = notebook_figure((3.2 * columns, 3.2 * rows + 0.4))
    figure.suptitle(title)
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for head, axes in enumerate(panels):
        if head >= heads:
            axes.axis("off")
            continue
        axes.imshow(weights[head].numpy(), cmap="viridis", vmin=0, vmax=1)
        axes.set_title(f"head {head}", fontsize="small")
        if len(tokens) <= MAX_LABELS // 2:
            for set_ticks in (axes.set_xticks, axes.set_yticks):
                set_ticks(range(len(tokens)), labels(tokens), family="monospace", fontsize="x-small")
    return figure


def labels(tokens: Sequence[str]) -> list[str]:
    """Tokens as labels: spaces and line breaks are visible, and no sign has a meaning for matplotlib."""
    visible = (token.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥") for token in tokens)
    return [token.replace("$", r"\$") for token in visible]
