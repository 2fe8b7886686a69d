"""The records that the training loop yields, one dataclass for each kind, and the protocol of their sinks.

A record is written as JSON to `metrics.jsonl`, so its field names and `kind` are a file format and do not change.
`api.pipeline` passes the records to the sinks: `metrics_file`, `trackers`, `console`.
"""

import dataclasses
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, Literal, Protocol, get_args


@dataclass(frozen=True, kw_only=True)
class BaseRecord:
    """What all records have. `step` is the number of optimizer steps that were done before the event."""

    kind: ClassVar[str]
    step: int

    def to_json(self) -> dict[str, Any]:
        """The record as a JSON object; the key `kind` comes first."""
        return {"kind": self.kind, **dataclasses.asdict(self)}


@dataclass(frozen=True, kw_only=True)
class StartRecord(BaseRecord):
    """Training starts, or resumes at `step`."""

    kind: ClassVar[Literal["start"]] = "start"
    out_dir: str
    parameters: int
    tokenizer: str  # the kind: char, byte, gpt2, bpe-SIZE
    vocab_size: int
    tokens_per_step: int  # of all ranks together
    epochs: float  # passes over the train split until max_iters
    max_iters: int
    device: str
    dtype: str
    threads: int  # per rank
    ranks: int
    dropout: bool  # whether dropout is used; its masks depend on the number of ranks
    fallbacks: list[str] = dataclasses.field(default_factory=list)  # fast paths that are not used, and why
    is_finished: bool = False  # takes no more steps: the last record says why


@dataclass(frozen=True, kw_only=True)
class StepRecord(BaseRecord):
    """The steps since the last step record: mean loss and rate; `learning_rate` and `grad_norm` are the last step's."""

    kind: ClassVar[Literal["step"]] = "step"
    loss: float  # nats per token
    learning_rate: float
    grad_norm: float | None  # before clipping; None if not finite: float16's loss scaler skipped the step
    tokens_per_second: float
    mfu: float | None  # model FLOPs utilization, 0 to 1; None if the device's peak is not known
    seconds: float  # of training steps so far, without evaluations


@dataclass(frozen=True, kw_only=True)
class EvalRecord(BaseRecord):
    """An evaluation on the val split. `train_loss` is the mean over the training steps since the last evaluation."""

    kind: ClassVar[Literal["eval"]] = "eval"
    train_loss: float  # nats per token, like the next two
    val_loss: float
    best_val_loss: float
    is_best: bool
    seconds: float  # of training steps so far, without evaluations
    val_loss_per_char: float | None = None  # nats per character, comparable between tokenizers; None if not known
    network_val_loss: float | None = None  # nats per token, of the network alone; None without an n-gram expert


@dataclass(frozen=True, kw_only=True)
class CheckpointRecord(BaseRecord):
    """A checkpoint was written completely. `name` is last, best, step_N, or early_N (weights alone)."""

    kind: ClassVar[Literal["checkpoint"]] = "checkpoint"
    name: str
    path: str


@dataclass(frozen=True, kw_only=True)
class MicroBatchRecord(BaseRecord):
    """Out of memory: from this step on a micro-batch has at most `rows` rows."""

    kind: ClassVar[Literal["micro_batch"]] = "micro_batch"
    rows: int


@dataclass(frozen=True, kw_only=True)
class SampleRecord(BaseRecord):
    """A sample that was generated during training."""

    kind: ClassVar[Literal["sample"]] = "sample"
    text: str


@dataclass(frozen=True, kw_only=True)
class ResultRecord(BaseRecord):
    """What the best checkpoint is worth: its loss on the val split in several units, and what n-gram models reach."""

    kind: ClassVar[Literal["result"]] = "result"
    best_step: int  # of the checkpoint
    val_loss: float  # nats per token
    val_tokens: int  # evaluated; less than `split_tokens` if the split is long
    split_tokens: int
    perplexity: float  # per token
    nats_per_character: float
    bits_per_character: float
    bits_per_byte: float  # of UTF-8
    unigram: float  # nats per token, like the next two: the losses of n-gram models of the same tokens
    bigram: float
    five_gram: float
    verdict: str  # in one sentence: whether the loss is normal, and what to do if not


class StopReason(StrEnum):
    """Why a training ended. The values are what a record holds as JSON."""

    MAX_ITERS = "max_iters"
    MAX_SECONDS = "max_seconds"
    TARGET_LOSS = "target_loss"
    PATIENCE = "patience"
    BATCHES = "batches"  # the iterator of batches that the caller gave is used up
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, kw_only=True)
class DoneRecord(BaseRecord):
    """Training ended."""

    kind: ClassVar[Literal["done"]] = "done"
    reason: StopReason
    best_val_loss: float | None
    best_step: int
    seconds: float


Record = (
    StartRecord
    | StepRecord
    | EvalRecord
    | CheckpointRecord
    | MicroBatchRecord
    | SampleRecord
    | ResultRecord
    | DoneRecord
)
"""An event of a training. Type checkers know the class after a test of `kind`."""


class Sink(Protocol):
    """Shows or stores the records of a run."""

    def write(self, record: Record) -> None:
        """Show or store one record."""

    def close(self) -> None:
        """No more records follow: flush, and release files and connections."""


def record_from_json(content: dict[str, Any]) -> Record:
    """The inverse of `to_json` of a record.

    >>> record_from_json({"kind": "sample", "step": 3, "text": "ROMEO:"})
    SampleRecord(step=3, text='ROMEO:')
    """
    kinds: dict[str, type[Record]] = {kind.kind: kind for kind in get_args(Record)}
    fields = {name: value for name, value in content.items() if name != "kind"}
    if "reason" in fields:
        fields["reason"] = StopReason(fields["reason"])
    return kinds[content["kind"]](**fields)
