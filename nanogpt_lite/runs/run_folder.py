"""The folders of runs: which one is meant, which one is free, what is in it.

runs/NAME/config.json        the whole config, versions, dataset hash
runs/NAME/metrics.jsonl      one record a line
runs/NAME/last.safetensors   everything that going on exactly needs
runs/NAME/best.safetensors   the same, at the lowest val loss
runs/NAME/loss.png           the curves
"""

import dataclasses
import itertools
import json
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nanogpt_lite import __version__, files
from nanogpt_lite.checkpoint.checkpoint_file import SUFFIX
from nanogpt_lite.data.dataset import Dataset
from nanogpt_lite.errors import UserError
from nanogpt_lite.tracking import metrics_file, plots
from nanogpt_lite.tracking.trackers import WANDB_ID_FILE
from nanogpt_lite.trainer.state import TrainState

RUNS_DIR = Path("runs")
TRACKER_FILES = ("events.out.tfevents.*", WANDB_ID_FILE)  # that trackers leave in a run's folder


@dataclass(frozen=True)
class Run:
    """A run's folder, and what is in it."""

    out_dir: Path  # a text will do

    def __post_init__(self) -> None:
        object.__setattr__(self, "out_dir", Path(self.out_dir))

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """All records of the run, oldest first."""
        return metrics_file.read_metrics(self.out_dir / "metrics.jsonl")

    @property
    def data_folder(self) -> Path:
        """The folder of the data that it was trained on, as seen from the folder where it was trained."""
        path = self.out_dir / "config.json"
        try:
            return Path(json.loads(path.read_text(encoding="utf-8"))["dataset"]["path"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"{path} does not say where the run's data is ({error}); it is written anew when the run goes on: "
                f"nanogpt-lite train --out_dir {self.out_dir} --init_from resume"
            ) from error

    @property
    def best_val_loss(self) -> float | None:
        """The lowest loss on the val split so far, in nats per token; None before the first evaluation."""
        return min((record["best_val_loss"] for record in self.metrics if record["kind"] == "eval"), default=None)

    def plot(self) -> Any:
        """A matplotlib Figure of the losses and the learning rate. `UserError` without matplotlib or losses."""
        records = self.metrics
        if not any(record["kind"] in ("step", "eval") for record in records):
            raise UserError(
                f"{self.out_dir / 'metrics.jsonl'} holds no losses; train for at least one log_interval, or give the "
                "folder of another run"
            )
        return plots.loss_figure(records, title=self.out_dir.name)

    def save_plot(self) -> Path:
        """Draw the losses and the learning rate into loss.png; its path."""
        path = self.out_dir / "loss.png"
        plots.save_figure(self.plot(), path)
        return path


RunLike = Run | str | Path | None
"""A run, or the path of its folder or of a checkpoint file; None: the newest run under runs/."""


def newest_run() -> Run:
    """The run under runs/ whose checkpoint was written last. `UserError` if there is none."""
    found = [path for folder in RUNS_DIR.glob("*") for path in checkpoints_in(folder)]
    written = sorted(found, key=lambda path: path.stat().st_mtime)
    if not written:
        raise UserError(
            f"there is no run with a checkpoint under {RUNS_DIR}/; train one (nanogpt-lite run), or give --out_dir"
        )
    return Run(written[-1].parent)


def existing_run(out_dir: str | Path) -> Run:
    """The run in a folder. `UserError` if there is none."""
    if not (Path(out_dir) / "metrics.jsonl").is_file():
        find_checkpoint(out_dir, "last")
    return Run(Path(out_dir))


def find_checkpoint(run: RunLike, name: str = "best") -> Path:
    """The path of a run's checkpoint; instead of best or last the newest one, if need be. `UserError` without any."""
    if run is None:
        run = newest_run()
    folder = run.out_dir if isinstance(run, Run) else Path(run)
    if folder.is_file():
        return folder
    path = folder / f"{name}{SUFFIX}"
    if name in ("best", "last") and not path.is_file():  # a run that was stopped early may not have it
        path = max(checkpoints_in(folder), key=lambda found: found.stat().st_mtime, default=path)
    if not path.is_file():
        there = ", ".join(sorted(found.stem for found in folder.glob(f"*{SUFFIX}") if found.is_file()))
        newest = sorted(RUNS_DIR.glob(f"*/last{SUFFIX}"), key=lambda found: found.stat().st_mtime, reverse=True)
        others = ", ".join(str(found.parent) for found in newest[:9]) + (", …" if len(newest) > 9 else "")
        remedy = f"it has {there}" if there else f"runs with one: {others}" if others else "train one: nanogpt-lite run"
        raise UserError(f"there is no checkpoint {name} in {folder}; {remedy}")
    return path


def checkpoints_in(folder: Path) -> list[Path]:
    """All checkpoints from which a run in this folder can go on."""
    names = ("best", "last", "step_*")
    return [path for name in names for path in folder.glob(f"{name}{SUFFIX}") if path.is_file()]


def require_no_run(out_dir: str, overwrite: bool) -> None:
    """`UserError` if the folder of a new run holds a run already that is not to be replaced, or files of others."""
    if out_dir and not overwrite and checkpoints_in(Path(out_dir)):
        raise UserError(
            f"{out_dir} holds a run already; go on with it (--init_from resume), give another --out_dir, or "
            "replace it (--overwrite)"
        )
    if foreign := _unknown_file(Path(out_dir)) if out_dir else None:
        raise UserError(f"{foreign} is there already, and no run wrote it; give another --out_dir, or move it away")


def create_run_dir(out_dir: str, dataset: str) -> Path:
    """The folder of a new run, made: `out_dir`, or the next free runs/DATASET-N."""
    if out_dir:
        path = Path(out_dir)
        if path.exists() and not path.is_dir():
            raise UserError(f"{out_dir} is a file, and a run needs a folder; give another --out_dir")
        path.mkdir(parents=True, exist_ok=True)
        return path
    RUNS_DIR.mkdir(exist_ok=True)
    for number in itertools.count(1):
        path = RUNS_DIR / f"{dataset}-{number}"
        try:
            path.mkdir()
            return path
        except FileExistsError:
            continue
    raise AssertionError


def delete_run_files(out_dir: Path) -> None:
    """Delete the run in a folder; files of others stay."""
    for old in _run_files(out_dir):
        old.unlink()


@contextmanager
def lock_run(out_dir: Path) -> Iterator[None]:
    """Keep others from training a run meanwhile. `UserError` if somebody does already."""
    try:
        with files.lock(out_dir):
            yield
    except BlockingIOError:
        raise UserError(
            f"{out_dir} is in use by another training; wait for its end or stop it, or give another --out_dir"
        ) from None


def write_run_config(state: TrainState, data: Dataset, out_dir: Path) -> None:
    """config.json: all that is needed to repeat the run, and with what it was made."""
    files.remove_temp_files(out_dir, f"*{SUFFIX}", "metrics.jsonl", "config.json", "loss.png")
    for path in out_dir.glob(".tmp??????"):  # under such a name safetensors writes a file first
        path.unlink(missing_ok=True)
    options = dataclasses.asdict(state.config)
    del options["out_dir"]  # a repetition gets a folder of its own
    content = {
        "config": options,
        "dataset": {"path": str(data.path), "sha256": data.sha256, "vocab_size": data.tokenizer.vocab_size},
        "versions": {
            "python": platform.python_version(),
            "nanogpt-lite": __version__,  # it may be imported from a folder, as on Modal, and not be installed
            **{name: version(name) for name in ("torch", "numpy")},
        },
    }
    files.write_json(out_dir / "config.json", content)


def _run_files(folder: Path) -> list[Path]:
    """The files in a folder that belong to a run, the checkpoints first."""
    names = (
        f"best{SUFFIX}",
        f"last{SUFFIX}",
        f"step_*{SUFFIX}",
        "metrics.jsonl",
        "config.json",
        "loss.png",
        *TRACKER_FILES,
    )
    return [path for name in names for path in folder.glob(name)]


def _unknown_file(folder: Path) -> Path | None:
    """A file that a run would replace, and that no run wrote."""
    config, metrics = folder / "config.json", folder / "metrics.jsonl"
    if config.exists():
        try:
            content = json.loads(config.read_text(encoding="utf-8"))
            ours = not isinstance(content, dict) or "nanogpt-lite" in content.get("versions", {})
        except (OSError, ValueError, TypeError, RecursionError):
            ours = config.is_file()  # damaged
        if not ours:
            return config
    if metrics.is_dir():
        return metrics
    first = metrics.read_bytes()[: len(metrics_file.LINE_PREFIX)] if metrics.exists() else b""
    return (
        None if metrics_file.LINE_PREFIX.startswith(first) else metrics
    )  # a kill may have left a part of the first line
