"""The loss plot holds exactly the data of the records; its file is written completely or not at all."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.text import Annotation

from nanogpt_lite.errors import UserError
from nanogpt_lite.tracking import plots

RECORDS = [
    {"kind": "start", "step": 0, "max_iters": 6},
    {"kind": "eval", "step": 0, "train_loss": 4.2, "val_loss": 4.3},
    {"kind": "step", "step": 2, "loss": 3.1, "learning_rate": 1e-3},
    {"kind": "step", "step": 4, "loss": 2.2, "learning_rate": 5e-4},
    {"kind": "sample", "step": 4, "text": "a"},
    {"kind": "eval", "step": 4, "train_loss": 2.5, "val_loss": 2.4},
    {"kind": "checkpoint", "step": 4, "name": "last", "path": "x"},
    {"kind": "step", "step": 6, "loss": 1.9, "learning_rate": 1e-4},
    {"kind": "eval", "step": 6, "train_loss": 2.0, "val_loss": 2.6},
    {"kind": "done", "step": 6, "reason": "max_iters"},
]


def records_of(*kinds: str) -> list[dict[str, Any]]:
    return [record for record in RECORDS if record["kind"] in kinds]


def points_of(line: Any) -> list[tuple[float, float]]:
    return list(zip(line.get_xdata(), line.get_ydata(), strict=True))


def test_curves_hold_the_data_of_the_records():
    losses, rates = plots.loss_figure(RECORDS, title="runs/a").axes
    assert {line.get_label(): points_of(line) for line in losses.lines} == {
        "train": [(2, 3.1), (4, 2.2), (6, 1.9)],
        "val": [(0, 4.3), (4, 2.4), (6, 2.6)],
    }
    assert [points_of(line) for line in rates.lines] == [[(2, 1e-3), (4, 5e-4), (6, 1e-4)]]
    (best,) = losses.texts
    assert isinstance(best, Annotation)
    assert (best.get_text(), best.xy) == ("2.4000", (4, 2.4))
    assert losses.get_title() == "runs/a"
    assert "nats per token" in losses.get_ylabel()


def test_the_loss_of_the_network_beside_an_n_gram_expert_is_a_curve_of_its_own():
    alone: dict[Any, float] = {4: 2.9, 6: 3.1}
    records = [{**r, "network_val_loss": alone[r["step"]]} if r["kind"] == "eval" else r for r in RECORDS[2:]]
    losses, _ = plots.loss_figure(records).axes
    curves = {line.get_label(): points_of(line) for line in losses.lines}
    assert curves["val, network alone"] == [(4, 2.9), (6, 3.1)]
    assert curves["val"] == [(4, 2.4), (6, 2.6)]


@pytest.mark.parametrize(("kind", "points"), [("step", [3, 0, 3]), ("eval", [0, 3, 0])])
def test_one_kind_of_loss_is_enough_for_a_plot(kind, points):
    losses, rates = plots.loss_figure(records_of("start", kind)).axes
    assert [np.size(line.get_xdata()) for line in [*losses.lines, *rates.lines]] == points


@pytest.mark.parametrize("records", [[], records_of("start", "sample", "checkpoint", "done")])
def test_records_without_losses_are_an_error(records):
    with pytest.raises(UserError, match="no losses yet"):
        plots.loss_figure(records)


def test_missing_matplotlib_is_an_error_that_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"pip install 'nanogpt-lite\[plot\]'"):
        plots.loss_figure(RECORDS)


def test_figure_is_saved_as_png(tmp_path):
    path = tmp_path / "loss.png"
    plots.save_figure(plots.loss_figure(RECORDS), path)
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert path.read_bytes().endswith(b"IEND\xaeB`\x82")
    assert [file.name for file in tmp_path.iterdir()] == ["loss.png"]


def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "loss.png"
    path.write_bytes(b"old")
    figure = plots.loss_figure(RECORDS)

    def savefig(self: object, path: Path, **_: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "full")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", savefig)
    with pytest.raises(OSError, match="full"):
        plots.save_figure(figure, path)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["loss.png"]


def test_plots_do_not_import_pyplot():
    """pyplot would choose a window system, and keep every figure in memory."""
    code = "import sys, nanogpt_lite.tracking.plots as p; p.loss_figure([{'kind': 'eval', 'step': 1, 'val_loss': 2.0}])"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print('matplotlib.pyplot' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False\n"
