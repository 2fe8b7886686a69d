"""The loss plot of a run, from the records in its metrics file."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanogpt_lite import files
from nanogpt_lite.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # an optional dependency

DPI = 120


def loss_figure(records: Sequence[dict[str, Any]], title: str = "") -> "Figure":
    """A matplotlib Figure: train and val loss (nats per token) over steps, and below them the learning rate.

    `records` are JSON objects as `read_metrics` returns them. `UserError` if matplotlib is not installed, or if the
    records hold no loss.
    """
    figure = notebook_figure((8, 6))
    steps = [record for record in records if record["kind"] == "step"]
    evals = [record for record in records if record["kind"] == "eval"]
    if not steps and not evals:
        raise UserError("the metrics hold no losses yet; train for at least one `log_interval` first")
    losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    losses.plot(*_series(steps, "loss"), color="tab:blue", alpha=0.4, linewidth=1, label="train")
    alone = [record for record in evals if record.get("network_val_loss") is not None]
    if alone:
        losses.plot(*_series(alone, "network_val_loss"), color="tab:green", marker=".", label="val, network alone")
    losses.plot(*_series(evals, "val_loss"), color="tab:orange", marker="o", markersize=4, label="val")
    if evals:
        best = min(evals, key=lambda record: record["val_loss"])
        losses.annotate(
            f"{best['val_loss']:.4f}",
            (best["step"], best["val_loss"]),
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
            color="tab:orange",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},  # over the train curve
        )
    losses.set(ylabel="loss (nats per token)", title=title)
    losses.margins(y=0.1)
    losses.legend()
    losses.grid(alpha=0.3)
    rates.plot(*_series(steps, "learning_rate"), color="tab:gray")
    rates.set(xlabel="step", ylabel="learning rate")
    rates.ticklabel_format(axis="y", scilimits=(-3, 3))
    rates.grid(alpha=0.3)
    return figure


def notebook_figure(size: tuple[float, float]) -> "Figure":
    """An empty matplotlib Figure, which a notebook shows as the value of a cell.

    `size`: its width and height in inches. `UserError` if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("plots need matplotlib; install it: pip install 'nanogpt-lite[plot]'") from None

    class NotebookFigure(Figure):
        """A figure that IPython shows without pyplot, which would keep every figure in memory."""

        def _repr_png_(self) -> bytes:
            content = io.BytesIO()
            self.savefig(content, dpi=DPI, format="png")
            return content.getvalue()

    return NotebookFigure(figsize=size, layout="constrained")


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure as PNG, atomically."""
    with files.atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=DPI, format="png")


def _series(records: Sequence[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    return [record["step"] for record in records], [record[key] for record in records]
