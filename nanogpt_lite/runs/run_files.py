"""The files of a run on disk: its folder is created, checked, locked and cleared, and config.json written.

Checkpoints are written by `trainer`, records by `tracking`. Existing runs are found by `run_folder`.
"""

import dataclasses
import itertools
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from nanogpt_lite import __version__, files
from nanogpt_lite.checkpoint import EARLY_WEIGHTS, SUFFIX
from nanogpt_lite.data.dataset import Dataset
from nanogpt_lite.errors import UserError
from nanogpt_lite.runs.run_folder import RUNS_DIR, checkpoints_in, early_weights_in
from nanogpt_lite.tracking import metrics_file
from nanogpt_lite.tracking.trackers import WANDB_ID_FILE
from nanogpt_lite.trainer.state import TrainState

LOCK_FILE = ".lock"  # in the folder of a run, while a training writes to it
TRACKER_FILES = ("events.out.tfevents.*", WANDB_ID_FILE)  # what TensorBoard and W&B write into a run's folder


def require_no_run(out_dir: str, overwrite: bool) -> None:
    """`UserError` if a new run may not use this folder.

    So it is if the folder holds a run and `overwrite` is False, or a file that the run would replace and that no run
    wrote. The empty `out_dir` stands for a new folder.
    """
    if not out_dir:
        return
    if not overwrite and checkpoints_in(Path(out_dir)):
        raise UserError(
            f"{out_dir} holds a run already; resume it (`init_from='resume'`), give another `out_dir`, or "
            "replace it (`overwrite=True`)"
        )
    if not overwrite and early_weights_in(Path(out_dir)):
        raise UserError(
            f"{out_dir} holds weights of a run that has no checkpoint to resume from; give another `out_dir`, or "
            "replace it (`overwrite=True`)"
        )
    if unknown := _unknown_file(Path(out_dir)):
        raise UserError(f"{unknown} exists already, and no run wrote it; give another `out_dir`, or move the file away")


def create_run_dir(out_dir: str, dataset: str) -> Path:
    """Create the folder of a new run: `out_dir`, or if that is empty the next free runs/DATASET-N."""
    if out_dir:
        path = Path(out_dir)
        if path.exists() and not path.is_dir():
            raise UserError(f"{out_dir} is a file, and a run needs a folder; give another `out_dir`")
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
    """Delete the files of the run in a folder; all other files stay."""
    for path in _run_files(out_dir):
        path.unlink()


@contextmanager
def lock_run(out_dir: Path) -> Iterator[None]:
    """Lock the folder of a run during the `with` block, and remove temporary files that killed processes left in it.

    `UserError` if another process has locked it.
    """
    try:
        with files.lock(out_dir / LOCK_FILE):
            files.remove_temp_files(out_dir, f"*{SUFFIX}", "metrics.jsonl", "config.json", "loss.png")
            for path in out_dir.glob(".tmp??????"):  # safetensors writes to a file of such a name first
                path.unlink(missing_ok=True)
            yield
    except BlockingIOError:
        raise UserError(
            f"{out_dir} is in use by another training; wait for its end or stop it, or give another `out_dir`"
        ) from None


def write_run_config(state: TrainState, data: Dataset, out_dir: Path) -> None:
    """Write config.json: options, dataset, versions of libraries."""
    options = dataclasses.asdict(state.config)
    del options["out_dir"]  # a run that repeats this config gets a folder of its own
    content = {
        "config": options,
        "dataset": {"path": data.path.as_posix(), "sha256": data.sha256, "vocab_size": data.tokenizer.vocab_size},
        "versions": {
            "python": platform.python_version(),
            "nanogpt-lite": __version__,  # not from importlib.metadata: on Modal the package is not installed
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
        EARLY_WEIGHTS,
        "metrics.jsonl",
        "config.json",
        "loss.png",
        *TRACKER_FILES,
    )
    return [path for name in names for path in folder.glob(name)]


def _unknown_file(folder: Path) -> Path | None:
    """A file that a run would replace and that no run wrote, if there is one."""
    config, metrics = folder / "config.json", folder / "metrics.jsonl"
    if config.exists() and not _is_run_config(config):
        return config
    if metrics.is_dir():
        return metrics
    start = metrics.read_bytes()[: len(metrics_file.LINE_PREFIX)] if metrics.exists() else b""
    # only a part of the prefix, if the process was killed while it wrote the first line
    return None if metrics_file.LINE_PREFIX.startswith(start) else metrics


def _is_run_config(path: Path) -> bool:
    """Whether a run wrote this config.json; a damaged file counts as one."""
    content = files.read_json(path)
    if not isinstance(content, dict):
        return path.is_file()
    versions = content.get("versions", {})
    return not isinstance(versions, dict) or "nanogpt-lite" in versions
