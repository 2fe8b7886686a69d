"""Sinks that show a run elsewhere: TensorBoard and Weights & Biases, each if it was asked for.

Training does not depend on them: one that is missing or fails is told of once, and left out from then on.
"""

import dataclasses
import json
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nanogpt_lite import files
from nanogpt_lite.config.options import TrainConfig
from nanogpt_lite.tracking.records import EvalRecord, Record, SampleRecord, Sink, StepRecord

INIT_TIMEOUT = 30.0  # seconds that training may have to wait for W&B
WANDB_ID_FILE = "wandb.json"  # in a run's folder: which run it is at Weights & Biases


def make_trackers(config: TrainConfig, out_dir: Path, *, step: int, warn: Callable[[str], None]) -> Iterator[Sink]:
    """The trackers that `config` asks for, of a run that goes on from `step`."""
    if config.tensorboard:
        yield BestEffortSink("tensorboard", lambda: TensorBoard(out_dir, step=step), warn)
    if config.wandb_log:
        yield BestEffortSink("wandb", lambda: WeightsAndBiases(config, out_dir), warn)


class BestEffortSink:
    """A sink that may fail, which is told of once; then it takes records and drops them."""

    def __init__(self, name: str, make: Callable[[], Sink], warn: Callable[[str], None]) -> None:
        """`make` makes the sink; `name` is that of the package that it needs."""
        self._name, self._warn = name, warn
        self._sink: Sink | None = None
        self._sink = self._try(make)

    def write(self, record: Record) -> None:
        if sink := self._sink:
            self._try(lambda: sink.write(record))

    def close(self) -> None:
        if sink := self._sink:
            self._try(sink.close)

    def _try(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except Exception as error:  # whatever another program can think of
            self._sink = None
            missing = isinstance(error, ModuleNotFoundError)
            remedy = f"; install it: pip install 'nanogpt-lite[{self._name}]'" if missing else ""
            reason = " ".join(str(error).split())[:300]
            self._warn(f"warning: going on without {self._name} ({type(error).__name__}: {reason}{remedy})")
            return None


class TensorBoard:
    """Events in the run's folder, so that `tensorboard --logdir runs` compares all runs."""

    def __init__(self, out_dir: Path, *, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # what was written after the checkpoint that the run goes on from is not shown
        self._writer: Any = SummaryWriter(str(out_dir), purge_step=step + 1 if step else None)

    def write(self, record: Record) -> None:
        for name, value in scalars(record).items():
            self._writer.add_scalar(name, value, record.step)
        if isinstance(record, SampleRecord):
            self._writer.add_text("sample", record.text, record.step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run at wandb.ai, or in the run's folder with WANDB_MODE=offline; it goes on there when training does."""

    def __init__(self, config: TrainConfig, out_dir: Path) -> None:
        import wandb

        self._run: Any = wandb.init(
            project=config.wandb_project,
            name=config.wandb_run_name or out_dir.name,
            id=_wandb_id(out_dir),
            resume="allow",
            config=dataclasses.asdict(config),
            dir=str(out_dir.resolve()),  # its service may have begun in another folder
            settings=wandb.Settings(init_timeout=INIT_TIMEOUT),
        )
        # W&B's own count never goes back, and a run that goes on from a checkpoint does
        self._run.define_metric("*", step_metric="step")

    def write(self, record: Record) -> None:
        shown: dict[str, Any] = scalars(record)
        if isinstance(record, SampleRecord):
            shown["sample"] = record.text
        if shown:
            self._run.log({"step": record.step, **shown})

    def close(self) -> None:
        self._run.finish()


def scalars(record: Record) -> dict[str, float]:
    """What there is to draw in a record."""
    match record:
        case StepRecord():
            found = {
                "train/loss": record.loss,
                "train/learning_rate": record.learning_rate,
                "train/grad_norm": record.grad_norm,
                "train/tokens_per_second": record.tokens_per_second,
                "train/mfu": record.mfu,
            }
            return {name: value for name, value in found.items() if value is not None}
        case EvalRecord():
            return {"val/loss": record.val_loss, "val/best_loss": record.best_val_loss}
    return {}


def _wandb_id(out_dir: Path) -> str:
    path = out_dir / WANDB_ID_FILE
    if not path.is_file():
        files.write_json(path, {"id": secrets.token_hex(4)})
    return str(json.loads(path.read_text(encoding="utf-8"))["id"])
