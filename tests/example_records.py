"""Records with fixed values, which several tests of sinks write."""

from typing import Any

from nanogpt_lite.tracking.records import EvalRecord, Record, ResultRecord, StartRecord, StepRecord, record_from_json

START = StartRecord(
    step=0,
    out_dir="runs/a",
    parameters=10_745_088,
    tokenizer="char",
    vocab_size=65,
    tokens_per_step=16_384,
    epochs=81.6,
    max_iters=5000,
    device="NVIDIA H100",
    dtype="bfloat16",
    threads=2,
    dropout=False,
    ranks=1,
)

RESULT = ResultRecord(
    step=5,
    best_step=5,
    val_loss=1.5,
    val_tokens=9,
    split_tokens=9,
    perplexity=4.5,
    nats_per_character=1.5,
    bits_per_character=2.2,
    bits_per_byte=2.2,
    unigram=3.0,
    bigram=2.0,
    five_gram=1.0,
    verdict="normal",
)


def step_record(step: int) -> StepRecord:
    return StepRecord(
        step=step,
        loss=1 / 3 + step,
        learning_rate=1e-3,
        grad_norm=0.1,
        tokens_per_second=123_456.0,
        mfu=0.25,
        seconds=0.5,
    )


def eval_record(step: int, is_best: bool = True) -> EvalRecord:
    return EvalRecord(step=step, train_loss=1.25, val_loss=1.5, best_val_loss=1.4, is_best=is_best, seconds=61.0)


def done_record(step: int, **changed: Any) -> Record:
    """The record of the end of a training that never evaluated, from its JSON form."""
    defaults = {"reason": "max_iters", "best_val_loss": None, "best_step": 0, "seconds": 1.0}
    return record_from_json({"kind": "done", "step": step, **defaults, **changed})
