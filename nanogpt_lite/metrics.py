"""The records that a run emits, as it goes, and the rates in them.

Where they are written is the business of `logs`; who emits them, of `trainer` and `pipeline`.
"""

import dataclasses
import re
from dataclasses import dataclass
from typing import Any, ClassVar

# Dense 16-bit matrix products with 32-bit sums, in FLOP/s, from the makers' data sheets. The first name whose
# words stand in the device's name counts, so the longer ones come first.
PEAK_FLOPS = (
    ("B300", 2.25e15),
    ("B200", 2.25e15),
    ("H200", 989e12),
    ("H100 NVL", 835e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("GH200", 989e12),
    ("A100", 312e12),
    ("A10G", 70e12),
    ("A10", 125e12),
    ("A30", 165e12),
    ("A40", 149.7e12),
    ("RTX A6000", 154.8e12),
    ("L40S", 362e12),
    ("L40", 181e12),
    ("L4", 121e12),
    ("V100", 125e12),
    ("T4", 65e12),
    ("RTX 5090", 209.5e12),
    ("RTX 4090", 165.2e12),
    ("RTX 3090", 71e12),
)


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


@dataclass(frozen=True, kw_only=True)
class DoneRecord(Record):
    """Training ended. `reason`: max_iters, max_seconds, target_loss, patience, batches or interrupted."""

    kind = "done"
    reason: str
    best_val_loss: float | None
    best_step: int
    seconds: float


def from_json(content: dict[str, Any]) -> Record:
    """The record that `to_json` made a JSON object of."""
    kinds = {kind.kind: kind for kind in Record.__subclasses__()}
    return kinds[content["kind"]](**{name: value for name, value in content.items() if name != "kind"})


def mfu(tokens_per_second: float, flops_per_token: float, device: str, dtype: str) -> float | None:
    """Model FLOPs utilization, 0 to 1 (PaLM, appendix B): None where the peak of `device` in `dtype` is not known."""
    known = (peak for name, peak in PEAK_FLOPS if re.search(rf"\b{name}\b", device) and "Laptop" not in device)
    peak = next(known, None)
    return tokens_per_second * flops_per_token / peak if peak and dtype in ("bfloat16", "float16") else None
