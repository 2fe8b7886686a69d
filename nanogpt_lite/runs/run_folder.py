"""The folder of a run, and how a run or one of its checkpoints is found.

runs/NAME/config.json              the whole config, versions, dataset hash
runs/NAME/metrics.jsonl            one record per line
runs/NAME/last.safetensors         the newest checkpoint: all that is needed to resume bit for bit
runs/NAME/best.safetensors         the same, at the lowest val loss
runs/NAME/step_001000.safetensors  numbered checkpoints, with `keep_every`
runs/NAME/early_000005.safetensors the weights of the network after step 5, and after some later ones, with `keep_early`
runs/NAME/loss.png                 the loss curves
runs/NAME/.lock                    while a training uses the folder, and after one was killed

How a folder is created, locked and cleared is in `run_files`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanogpt_lite import files
from nanogpt_lite.checkpoint import EARLY_WEIGHTS, SUFFIX
from nanogpt_lite.errors import UserError
from nanogpt_lite.tracking import metrics_file, plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # an optional dependency

RUNS_DIR = Path("runs")


@dataclass(frozen=True)
class Run:
    """The folder of a run, and what its files say."""

    out_dir: Path  # a str is converted

    def __post_init__(self) -> None:
        object.__setattr__(self, "out_dir", Path(self.out_dir))

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """All records in metrics.jsonl, oldest first."""
        return metrics_file.read_metrics(self.out_dir / "metrics.jsonl")

    @property
    def data_folder(self) -> Path:
        """The folder of the dataset, relative to the folder in which the run was started.

        `UserError` if config.json does not say it.
        """
        path = self.out_dir / "config.json"
        match files.read_json(path):
            case {"dataset": {"path": str(data_folder)}}:
                return Path(data_folder)
        raise UserError(
            f"{path} does not say where the dataset of the run is; resume the run to write it again: "
            f"`init_from='resume'`, `out_dir={str(self.out_dir)!r}`"
        )

    @property
    def data_sha256(self) -> str:
        """The SHA-256 of the text that the run learns, in hexadecimal digits; empty if config.json does not say it."""
        match files.read_json(self.out_dir / "config.json"):
            case {"dataset": {"sha256": str(sha256)}}:
                return sha256
        return ""

    @property
    def best_val_loss(self) -> float | None:
        """The lowest val loss so far, in nats per token; None before the first evaluation."""
        return min((record["best_val_loss"] for record in self.metrics if record["kind"] == "eval"), default=None)

    def seconds_until(self, step: int) -> float:
        """The training time until `step` in seconds, by the metrics; it is no part of a checkpoint."""
        times = [r["seconds"] for r in self.metrics if isinstance(r.get("seconds"), float) and r["step"] <= step]
        return max(times, default=0.0)

    def plot(self) -> "Figure":
        """A matplotlib Figure of the losses and the learning rate. `UserError` without matplotlib or losses."""
        records = self.metrics
        if not any(record["kind"] in ("step", "eval") for record in records):
            raise UserError(
                f"{self.out_dir / 'metrics.jsonl'} holds no losses; train for at least one `log_interval`, or give "
                "the folder of another run"
            )
        return plots.loss_figure(records, title=self.out_dir.name)

    def save_plot(self) -> Path:
        """Plot the losses and the learning rate into loss.png, and return its path. `UserError` as of `plot`."""
        path = self.out_dir / "loss.png"
        plots.save_figure(self.plot(), path)
        return path


RunLike = Run | str | Path | None
"""A run, the path of its folder, or the path of a checkpoint file; None: the newest run under runs/."""


def newest_run() -> Run:
    """The run under runs/ with the newest checkpoint. `UserError` if there is none."""
    checkpoints = [path for folder in RUNS_DIR.glob("*") for path in checkpoints_in(folder)]
    if not checkpoints:
        raise UserError(f"there is no run with a checkpoint under {RUNS_DIR}/; train one, or give an `out_dir`")
    return Run(sorted(checkpoints, key=_modified_at)[-1].parent)


def existing_run(out_dir: str | Path) -> Run:
    """The run in a folder. `UserError` if the folder has neither records nor a checkpoint."""
    if not (Path(out_dir) / "metrics.jsonl").is_file():
        find_checkpoint(out_dir, "last")
    return Run(Path(out_dir))


def find_checkpoint(run: RunLike, name: str = "best") -> Path:
    """The path of the checkpoint `name` of a run. `UserError` if there is none.

    A run that was stopped early may have no best or last checkpoint: then it is the newest one.
    """
    if run is None:
        run = newest_run()
    folder = run.out_dir if isinstance(run, Run) else Path(run)
    if folder.is_file():
        return folder
    path = folder / f"{name}{SUFFIX}"
    if name in ("best", "last") and not path.is_file():
        path = max(checkpoints_in(folder), key=_modified_at, default=path)
    if not path.is_file():
        missing = f"there is no checkpoint {name} in {folder}" if folder.exists() else f"there is no run {folder}"
        raise UserError(f"{missing}; {_missing_checkpoint_remedy(folder)}")
    return path


def checkpoints_in(folder: Path) -> list[Path]:
    """All checkpoints in a folder from which its run can be resumed; exported weights are not among them."""
    names = ("best", "last", "step_*")
    return [path for name in names for path in folder.glob(f"{name}{SUFFIX}") if path.is_file()]


def early_weights_in(folder: Path) -> list[Path]:
    """The weights on the way that a folder has, in the order of their steps; no run can resume from them."""
    return sorted(path for path in folder.glob(EARLY_WEIGHTS) if path.is_file())


def _missing_checkpoint_remedy(folder: Path) -> str:
    if names := sorted(path.stem for path in folder.glob(f"*{SUFFIX}") if path.is_file()):
        return f"give one of {', '.join(names)} as `checkpoint`"
    newest_first = sorted(RUNS_DIR.glob(f"*/last{SUFFIX}"), key=_modified_at, reverse=True)
    if newest_first:
        more = ", …" if len(newest_first) > 9 else ""
        return f"runs with one: {', '.join(str(path.parent) for path in newest_first[:9])}{more}"
    return "train a run first"


def _modified_at(path: Path) -> float:
    return path.stat().st_mtime
