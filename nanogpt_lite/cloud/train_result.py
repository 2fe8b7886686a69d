"""What the Function `train` of `modal_app.py` returns, from the records of the run."""

from collections.abc import Sequence
from typing import Any, TypedDict

from nanogpt_lite.config.spelling import for_modal
from nanogpt_lite.data import preparation
from nanogpt_lite.data.dataset import val_text_size
from nanogpt_lite.runs.run_folder import Run
from nanogpt_lite.tracking.records import ResultRecord, StopReason


class TrainResult(TypedDict):
    """What the Function `train` returns."""

    run: str  # its name
    step: int
    reason: str  # why it ended: a `StopReason`
    best_val_loss: float | None  # nats per token; None before the first evaluation
    best_val_loss_per_byte: float | None  # nats per byte of the text, which any two tokenizers have in common
    verdict: str  # in one sentence, on the loss: that of a `ResultRecord`; empty without one


def make_train_result(run: Run) -> TrainResult:
    """What the Function returns; after a limit of time, the command that continues the run is printed."""
    records, best = run.metrics, run.best_val_loss
    last = records[-1]
    if last["reason"] == StopReason.MAX_SECONDS:
        print(
            f"the time limit is reached; the run is saved at step {last['step']}. To go on: "
            f"modal run modal_app.py::train --out-dir {run.out_dir.name} --init-from resume (and --gpu, --timeout)"
        )
    return {
        "run": run.out_dir.name,
        "step": last["step"],
        "reason": last["reason"],
        "best_val_loss": best,
        "best_val_loss_per_byte": None if best is None else best * _tokens_per_byte(run),
        "verdict": _verdict(records),
    }


def _verdict(records: Sequence[dict[str, Any]]) -> str:
    """The verdict on the run after its last step; empty if there is none."""
    results = [r for r in records if r["kind"] == ResultRecord.kind and r["step"] == records[-1]["step"]]
    return for_modal(results[-1]["verdict"]) if results else ""


def _tokens_per_byte(run: Run) -> float:
    """The tokens of the val split for each byte of its text in UTF-8."""
    data = preparation.open_or_prepare(run.data_folder)
    return len(data.val) / val_text_size(data)[1]
