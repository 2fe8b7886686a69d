"""Sinks for experiment trackers: TensorBoard and Weights & Biases, each enabled by an option.

Training does not depend on them: if one is not installed or fails, there is one warning, and training continues
without it.
"""

import dataclasses
import json
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

from nanogpt_lite import files
from nanogpt_lite.config.options import TrainConfig
from nanogpt_lite.tracking.records import EvalRecord, Record, SampleRecord, Sink, StepRecord

INIT_TIMEOUT = 30.0  # seconds that training waits for W&B at most
WANDB_ID_FILE = "wandb.json"  # in a run's folder: the run's id at Weights & Biases


def make_trackers(config: TrainConfig, out_dir: Path, *, step: int, warn: Callable[[str], None]) -> Iterator[Sink]:
    """The trackers that `config` enables, for a run that starts or resumes at `step`."""
    if config.tensorboard:
        yield BestEffortSink("tensorboard", lambda: TensorBoard(out_dir, step=step), warn)
    if config.wandb_log:
        yield BestEffortSink("wandb", lambda: WeightsAndBiases(config, out_dir), warn)


class BestEffortSink:
    """Wraps a sink that may fail: the first failure is one warning, and later records are dropped."""

    def __init__(self, name: str, make: Callable[[], Sink], warn: Callable[[str], None]) -> None:
        """`make` creates the sink; `name` is the extra that installs its package."""
        self._name, self._warn = name, warn
        self._sink: Sink | None = None
        self._sink = self._attempt(make)

    def write(self, record: Record) -> None:
        if sink := self._sink:
            self._attempt(lambda: sink.write(record))

    def close(self) -> None:
        if sink := self._sink:
            self._attempt(sink.close)

    def _attempt(self, action: Callable[[], Sink | None]) -> Sink | None:
        try:
            return action()
        except Exception as error:  # another package may raise anything
            self._sink = None
            missing = isinstance(error, ModuleNotFoundError)
            remedy = f"; install it: pip install 'nanogpt-lite[{self._name}]'" if missing else ""
            reason = " ".join(str(error).split())[:300]
            self._warn(f"warning: continuing without {self._name} ({type(error).__name__}: {reason}{remedy})")
            return None


class TensorBoard:
    """Writes event files to the run's folder, so that `tensorboard --logdir runs` compares all runs."""

    def __init__(self, out_dir: Path, *, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # hides what was written after the checkpoint that the run resumes from
        self._writer = SummaryWriter(str(out_dir), purge_step=step + 1 if step else None)

    def write(self, record: Record) -> None:
        for name, value in scalars(record).items():
            self._writer.add_scalar(name, value, record.step)
        if isinstance(record, SampleRecord):
            self._writer.add_text("sample", record.text, record.step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run at wandb.ai, or in the run's folder with WANDB_MODE=offline. A resumed training continues the same run."""

    def __init__(self, config: TrainConfig, out_dir: Path) -> None:
        import wandb

        self._run = wandb.init(
            project=config.wandb_project,
            name=config.wandb_run_name or out_dir.name,
            id=_wandb_id(out_dir),
            resume="allow",
            config=dataclasses.asdict(config),
            dir=str(out_dir.resolve()),  # its service may have started in another folder
            settings=wandb.Settings(init_timeout=INIT_TIMEOUT),
        )
        # W&B's own step counter only increases, but resuming from a checkpoint goes back to an earlier step
        self._run.define_metric("*", step_metric="step")

    def write(self, record: Record) -> None:
        values: dict[str, float | str] = {**scalars(record)}
        if isinstance(record, SampleRecord):
            values["sample"] = record.text
        if values:
            self._run.log({"step": record.step, **values})

    def close(self) -> None:
        self._run.finish()


def scalars(record: Record) -> dict[str, float]:
    """The values of a record that trackers plot, by tag; empty for records without any."""
    values: dict[str, float | None] = {}
    match record:
        case StepRecord():
            values = {
                "train/loss": record.loss,
                "train/learning_rate": record.learning_rate,
                "train/grad_norm": record.grad_norm,
                "train/tokens_per_second": record.tokens_per_second,
                "train/mfu": record.mfu,
            }
        case EvalRecord():
            values = {
                "val/loss": record.val_loss,
                "val/best_loss": record.best_val_loss,
                "val/network_loss": record.network_val_loss,
            }
    return {name: value for name, value in values.items() if value is not None}


def _wandb_id(out_dir: Path) -> str:
    path = out_dir / WANDB_ID_FILE
    if not path.is_file():
        files.write_json(path, {"id": secrets.token_hex(4)})
    return str(json.loads(path.read_text(encoding="utf-8"))["id"])
