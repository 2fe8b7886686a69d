"""Sinks for records: what a person sees while it runs, and the metrics file.

Everything for people goes to standard error; results, which `cli` prints, go to standard output.
"""

import dataclasses
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, Protocol


@dataclass(frozen=True, kw_only=True)
class Record:
    """Something that happened, when `step` optimizer steps were done."""

    kind: ClassVar[str]
    step: int

    def to_json(self) -> dict[str, Any]:
        """The record as a JSON object, its kind first."""
        return {"kind": self.kind, **dataclasses.asdict(self)}


@dataclass(frozen=True, kw_only=True)
class StartRecord(Record):
    """Training begins, or goes on."""

    kind = "start"
    out_dir: str
    parameters: int
    tokenizer: str  # its kind: char, byte, gpt2, bpe-SIZE
    vocab_size: int
    tokens_per_step: int
    epochs: float  # passes over the train split until max_iters
    max_iters: int
    device: str
    dtype: str
    threads: int  # of each rank
    ranks: int
    dropout: bool  # whether there are masks, which differ with the number of ranks


@dataclass(frozen=True, kw_only=True)
class StepRecord(Record):
    """What the steps since the last such record were like, on average; `learning_rate` and `grad_norm` of the last."""

    kind = "step"
    loss: float  # nats per token
    learning_rate: float
    grad_norm: float | None  # before clipping; None where it was not finite, and float16's loss scaler left it out
    tokens_per_second: float
    mfu: float | None  # share of the device's peak rate, 0 to 1; None where the peak is not known
    seconds: float  # of training steps so far, evaluations left out


@dataclass(frozen=True, kw_only=True)
class EvalRecord(Record):
    """An evaluation. `train_loss` is the mean of the steps since the last one."""

    kind = "eval"
    train_loss: float
    val_loss: float
    best_val_loss: float
    is_best: bool
    seconds: float  # of training steps so far, evaluations left out


@dataclass(frozen=True, kw_only=True)
class CheckpointRecord(Record):
    """A checkpoint is on disk, whole: `name` is last, best, or step_N."""

    kind = "checkpoint"
    name: str
    path: str


@dataclass(frozen=True, kw_only=True)
class MicroBatchRecord(Record):
    """Memory did not suffice: from this step on at most `rows` rows go through the network at a time."""

    kind = "micro_batch"
    rows: int


@dataclass(frozen=True, kw_only=True)
class SampleRecord(Record):
    """A text drawn in the middle of training."""

    kind = "sample"
    text: str


class StopReason(StrEnum):
    """Why a training ended. The values are what a record holds as JSON."""

    MAX_ITERS = "max_iters"
    MAX_SECONDS = "max_seconds"
    TARGET_LOSS = "target_loss"
    PATIENCE = "patience"
    BATCHES = "batches"  # the iterator of batches that the caller gave is used up
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, kw_only=True)
class DoneRecord(Record):
    """Training ended."""

    kind = "done"
    reason: StopReason
    best_val_loss: float | None
    best_step: int
    seconds: float


class Sink(Protocol):
    """Something that takes the records of a run."""

    def write(self, record: Record) -> None:
        """Take one more record."""

    def close(self) -> None:
        """Nothing follows."""


def record_from_json(content: dict[str, Any]) -> Record:
    """The record that `to_json` made a JSON object of."""
    kinds = {kind.kind: kind for kind in Record.__subclasses__()}
    fields = {name: value for name, value in content.items() if name != "kind"}
    if "reason" in fields:
        fields["reason"] = StopReason(fields["reason"])
    return kinds[content["kind"]](**fields)
