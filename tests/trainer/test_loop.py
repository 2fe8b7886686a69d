"""The training loop: its records and checkpoints, when it stops, and exact resuming."""

import itertools
import math
import time

import pytest
import torch
from tiny_training import SMALL, TOKENIZER, TRAIN, VAL, records_of, small_config, train

from nanogpt_lite.checkpoint.checkpoint_file import read_checkpoint
from nanogpt_lite.data import batching
from nanogpt_lite.errors import ExternalError, UserError
from nanogpt_lite.optim.schedule import learning_rate
from nanogpt_lite.tracking.records import (
    CheckpointRecord,
    DoneRecord,
    EvalRecord,
    StartRecord,
    StepRecord,
    StopReason,
    record_from_json,
)
from nanogpt_lite.trainer import evaluation, loop, training_records
from nanogpt_lite.trainer.state import init_state, restore_state
from nanogpt_lite.trainer.step import train_step


@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_give_the_losses_of_the_whole_batch(tmp_path, parts):
    _, whole = train(tmp_path / "whole", small_config(batch_size=8))
    _, split = train(tmp_path / "split", small_config(batch_size=8 // parts, gradient_accumulation_steps=parts))
    for one, other in zip(records_of(EvalRecord, whole), records_of(EvalRecord, split), strict=True):
        assert other.val_loss == pytest.approx(one.val_loss, abs=1e-4)
        assert other.train_loss == pytest.approx(one.train_loss, abs=1e-4)
    assert records_of(StartRecord, whole)[0].tokens_per_step == records_of(StartRecord, split)[0].tokens_per_step == 64


def test_training_does_not_change_the_global_random_state(tmp_path):
    before = torch.get_rng_state()
    train(tmp_path, small_config(dropout=0.5))
    assert torch.equal(torch.get_rng_state(), before)


def test_records_come_in_order_with_the_right_values(tmp_path):
    state, records = train(tmp_path)
    shape = [(type(r).kind, r.step) for r in records if not isinstance(r, CheckpointRecord)]
    assert shape == [
        *[("start", 0), ("step", 2), ("step", 4), ("eval", 5), ("step", 6), ("step", 8)],
        *[("step", 10), ("eval", 10), ("step", 12), ("eval", 12), ("done", 12)],
    ]
    losses = [record.loss for record in records_of(StepRecord, records)]
    evals = records_of(EvalRecord, records)
    # both are means of the same twelve losses: over pairs of steps, and over 5, 5 and 2 steps
    assert sum(losses) * 2 == pytest.approx(sum(e.train_loss * n for e, n in zip(evals, (5, 5, 2), strict=True)))
    assert [r.learning_rate for r in records_of(StepRecord, records)] == [
        learning_rate(n - 1, state.config) for n in range(2, 13, 2)
    ]
    begin = records_of(StartRecord, records)[0]
    assert (begin.tokens_per_step, begin.max_iters, begin.threads, begin.dtype) == (32, 12, 1, "float32")
    assert begin.epochs == pytest.approx(12 * 32 / 1000)
    assert begin.parameters == sum(p.numel() for p in state.model.parameters())


def test_a_checkpoint_is_on_disk_when_its_record_comes(tmp_path):
    names = []
    for record in loop.train_loop(init_state(SMALL, TOKENIZER), TRAIN, VAL, out_dir=tmp_path):
        if isinstance(record, CheckpointRecord):
            names.append((record.name, record.step))
            assert read_checkpoint(tmp_path / f"{record.name}.safetensors").metadata.step == record.step
    assert names == [("best", 5), ("last", 5), ("best", 10), ("last", 10), ("best", 12), ("last", 12)]


def both_losses(loss):
    """The losses of a network without an n-gram expert."""
    return evaluation.Losses(loss, loss)


def test_best_checkpoint_is_that_of_the_lowest_val_loss(tmp_path, monkeypatch):
    losses = map(both_losses, [3.0, 2.0, 2.5, 2.0, 1.5, 9.0])
    monkeypatch.setattr(evaluation, "val_losses", lambda *_, **__: next(losses))
    _, records = train(tmp_path, small_config(max_iters=6, eval_interval=1))
    evals = records_of(EvalRecord, records)
    assert [e.is_best for e in evals] == [True, True, False, False, True, False]
    assert [e.best_val_loss for e in evals] == [3.0, 2.0, 2.0, 2.0, 1.5, 1.5]
    assert read_checkpoint(tmp_path / "best.safetensors").metadata.step == 5
    assert read_checkpoint(tmp_path / "last.safetensors").metadata.best_step == 5
    assert (records[-1].best_val_loss, records[-1].best_step) == (1.5, 5)


def test_numbered_checkpoints_are_kept(tmp_path):
    train(tmp_path, small_config(keep_every=4))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "best.safetensors",
        "last.safetensors",
        *[f"step_{n:06d}.safetensors" for n in (4, 8, 12)],
    ]
    assert read_checkpoint(tmp_path / "step_000004.safetensors").metadata.step == 4


@pytest.mark.parametrize(
    ("options", "losses", "reason", "steps"),
    [
        ({"patience": 2}, [3.0, 2.0, 2.5, 2.6, 1.0], "patience", 4),
        ({"target_loss": 2.1}, [3.0, 2.5, 2.1, 1.0], "target_loss", 3),
        ({}, [3.0] * 12, "max_iters", 12),
    ],
)
def test_a_run_stops_for_each_reason(tmp_path, monkeypatch, options, losses, reason, steps):
    given = map(both_losses, losses)
    monkeypatch.setattr(evaluation, "val_losses", lambda *_, **__: next(given))
    _, records = train(tmp_path, small_config(eval_interval=1, **options))
    assert (records[-1].reason, records[-1].step) == (reason, steps)
    assert vars(record_from_json(records[-1].to_json()))["reason"] is StopReason(reason)


def test_max_seconds_stops_after_an_evaluation(tmp_path, monkeypatch):
    clock = itertools.count(100.0, 10.0)  # each reading is ten seconds later
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    _, records = train(tmp_path, small_config(max_seconds=35, eval_interval=1000))
    assert (records[-1].reason, records[-1].step) == ("max_seconds", 3)
    assert [r.step for r in records_of(EvalRecord, records)] == [3]
    assert read_checkpoint(tmp_path / "best.safetensors").metadata.step == 3


def test_a_finished_run_takes_no_step_and_writes_nothing(tmp_path):
    train(tmp_path)
    before = (tmp_path / "last.safetensors").stat().st_mtime_ns
    state = restore_state(read_checkpoint(tmp_path / "last.safetensors"), {})
    _, records = train(tmp_path, state=state)
    assert [type(r) for r in records] == [StartRecord, DoneRecord]
    assert (tmp_path / "last.safetensors").stat().st_mtime_ns == before


# options that nanoGPT does not have
MODERN = {"position": "rotary", "norm": "rms", "qk_norm": True, "activation": "relu2", "tied": False, "ngram": 3}
MODERN |= {"zero_init": True, "ngram_dropout": 0.3, "optimizer": "muon", "cooldown": 0.5}


@pytest.mark.parametrize(
    "options", [{}, {"dropout": 0.2}, {"gradient_accumulation_steps": 2}, {"eval_iters": 2}, MODERN]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_resume_is_bit_exact_after_interruptions(tmp_path, dtype, options):
    """A run that is stopped every few steps, before, after and between evaluations, and resumed from the file."""
    config = small_config(dtype=dtype, **options)
    _, straight = train(tmp_path / "straight", config)
    state, pieces = init_state(config, TOKENIZER), []
    while True:
        stops = itertools.count()
        _, records = train(tmp_path / "pieces", state=state, stop=lambda counter=stops: next(counter) > 3)
        pieces += [r for r in records if isinstance(r, StepRecord | EvalRecord)]
        if records[-1].reason != "interrupted":
            break
        state = restore_state(read_checkpoint(tmp_path / "pieces" / "last.safetensors"), {})
    for name in ("last", "best"):
        files = [(tmp_path / folder / f"{name}.safetensors").read_bytes() for folder in ("straight", "pieces")]
        assert files[0] == files[1]
    assert without_times(pieces) == without_times(straight)


def without_times(records):
    """Step and evaluation records as JSON, without the fields that depend on time."""
    records = [record.to_json() for record in records if isinstance(record, StepRecord | EvalRecord)]
    return [{k: v for k, v in record.items() if k not in ("seconds", "tokens_per_second")} for record in records]


def test_a_stop_during_an_evaluation_loses_nothing(tmp_path):
    _, straight = train(tmp_path / "straight")
    state = init_state(SMALL, TOKENIZER)
    answers = itertools.chain([False] * 6, itertools.repeat(True))  # called before each step, then in the evaluation
    _, records = train(tmp_path / "cut", state=state, stop=lambda: next(answers))
    assert (records[-1].reason, records[-1].step) == ("interrupted", 5)
    assert not records_of(EvalRecord, records)
    state = restore_state(read_checkpoint(tmp_path / "cut" / "last.safetensors"), {})
    _, rest = train(tmp_path / "cut", state=state)
    assert [(e.step, e.val_loss) for e in records_of(EvalRecord, rest)] == [
        (e.step, e.val_loss) for e in records_of(EvalRecord, straight)
    ]


def test_extending_a_run_keeps_its_schedule(tmp_path):
    train(tmp_path)
    saved = read_checkpoint(tmp_path / "last.safetensors")
    assert saved.metadata.config.lr_decay_iters == 12
    state, records = train(tmp_path, state=restore_state(saved, {"max_iters": 15}))
    assert records[-1].step == 15
    assert state.config.lr_decay_iters == 12
    assert learning_rate(13, state.config) == state.config.min_lr


@pytest.mark.parametrize("where", ["loss", "gradient", "evaluation"])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch, where):
    state = init_state(small_config(log_interval=1 if where != "evaluation" else 1000, eval_interval=4), TOKENIZER)

    def failing(state, forward, batch):
        train_step(state, forward, batch)
        if state.step == 7 and where == "loss":
            state.since_log.total.fill_(math.nan)
        if state.step == 7 and where == "gradient":
            state.grad_norm = torch.tensor(math.inf)
        if state.step == 7 and where == "evaluation":
            state.model.lm_head.weight.data[0, 0] = math.nan

    monkeypatch.setattr(loop, "train_step", failing)
    with pytest.raises(ExternalError, match=r"not finite by step [78]; .*`init_from='resume'`.*`learning_rate`"):
        train(tmp_path, state=state)
    for name in ("last", "best"):
        good = read_checkpoint(tmp_path / f"{name}.safetensors")
        assert good.metadata.step == 4
        assert all(tensor.isfinite().all() for tensor in good.tensors.values())


@pytest.mark.parametrize("broken", [(math.nan, math.nan), (math.inf, math.inf), (2.0, math.inf)])
def test_a_val_loss_that_is_not_finite_stops_without_a_checkpoint(tmp_path, monkeypatch, broken):
    """Also if it is that of the network alone: a mixture with counts may stay finite."""
    losses = iter([both_losses(3.0), evaluation.Losses(*broken)])
    monkeypatch.setattr(evaluation, "val_losses", lambda *_, **__: next(losses))
    with pytest.raises(ExternalError, match="not finite by step 10"):
        train(tmp_path)
    assert read_checkpoint(tmp_path / "last.safetensors").metadata.step == 5


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.02), ("float16", 0.003)])
def test_dtypes_train_to_nearly_the_same_loss(tmp_path, dtype, tolerance):
    exact, rough = (train(tmp_path / d, small_config(dtype=d, max_iters=60))[1][-1] for d in ("float32", dtype))
    assert rough.best_val_loss == pytest.approx(exact.best_val_loss, abs=tolerance)
    assert exact.best_val_loss < 1.9 < math.log(8)


def test_a_text_shorter_than_a_block_is_an_error(tmp_path):
    with pytest.raises(UserError, match="block_size=8.*8 tokens.*needs 9"):
        list(loop.train_loop(init_state(SMALL, TOKENIZER), TRAIN[:8], VAL, out_dir=tmp_path))


def test_given_batches_train_like_the_same_random_batches(tmp_path):
    """The default batches as an argument give the default run."""
    _, expected = train(tmp_path / "a")
    given = batching.train_batches(TRAIN, rows=4, block_size=8, seed=1337, step=0)
    _, got = train(tmp_path / "b", train_batches=given)
    assert [r.loss for r in records_of(StepRecord, got)] == [r.loss for r in records_of(StepRecord, expected)]


@pytest.mark.parametrize(
    ("is_asynchronous", "order"),
    [
        (True, ["batch 0", "step", "batch 1", "step", "batch 2", "record 2", "step", "batch 3", "step", "batch 4"]),
        (False, ["batch 0", "step", "batch 1", "step", "record 2", "batch 2", "step", "batch 3", "step", "record 4"]),
    ],
)
def test_on_a_gpu_the_next_batch_is_drawn_before_anything_waits(tmp_path, monkeypatch, is_asynchronous, order):
    """And a run that is stopped and resumed is the same to the last bit."""
    train(tmp_path / "plain", small_config(max_iters=8))
    events = []

    def log(function, name):
        def call(*arguments, **options):
            events.append(name(*arguments, **options))
            return function(*arguments, **options)

        return call

    monkeypatch.setattr(loop, "computes_asynchronously", lambda device: is_asynchronous)
    monkeypatch.setitem(batching.BATCHES, "random", log(batching.random_batch, lambda *_, step, **__: f"batch {step}"))
    monkeypatch.setattr(loop, "train_step", log(train_step, lambda *_: "step"))
    step_record = log(training_records.step_record, lambda state, _: f"record {state.step}")
    monkeypatch.setattr(training_records, "step_record", step_record)
    stops = itertools.count()
    train(tmp_path / "run", small_config(max_iters=8), stop=lambda: next(stops) == 4)
    assert events[:10] == order
    state = restore_state(read_checkpoint(tmp_path / "run/last.safetensors"), {})
    assert state.step == 4
    train(tmp_path / "run", state=state)
    plain, resumed = [(tmp_path / folder / "last.safetensors").read_bytes() for folder in ("plain", "run")]
    assert resumed == plain


def test_given_batches_are_not_taken_ahead(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "computes_asynchronously", lambda device: True)
    given = batching.train_batches(TRAIN, rows=4, block_size=8, seed=1337, step=0)
    taken = itertools.count()
    train(tmp_path, small_config(max_iters=3), train_batches=(batch for batch in given if next(taken) >= 0))
    assert next(taken) == 3


def test_a_run_stops_when_the_given_batches_end(tmp_path):
    given = batching.train_batches(TRAIN, rows=4, block_size=8, seed=1337, step=0)
    _, records = train(tmp_path, train_batches=itertools.islice(given, 3))
    assert (records[-1].reason, records[-1].step) == ("batches", 3)
    assert read_checkpoint(tmp_path / "last.safetensors").metadata.step == 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's compiler uses what PyTorch deprecates
@pytest.mark.parametrize("options", [{}, {**MODERN, "ngram_dropout": 0.0}], ids=["nanoGPT", "modern"])
@pytest.mark.parametrize("whole", [False, True], ids=["blocks", "whole"])
def test_a_compiled_network_trains_to_the_same_losses(tmp_path, whole, options):
    _, plain = train(tmp_path / "plain", small_config(**options))
    _, compiled = train(tmp_path / "compiled", small_config(compile=not whole, compile_whole=whole, **options))
    assert compiled[0].fallbacks == []
    for one, other in zip(records_of(EvalRecord, plain), records_of(EvalRecord, compiled), strict=True):
        assert other.val_loss == pytest.approx(one.val_loss, abs=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_gpu_trains_to_the_losses_of_the_cpu(tmp_path, dtype):
    _, cpu = train(tmp_path / "cpu", small_config(max_iters=60))
    _, gpu = train(tmp_path / "gpu", small_config(max_iters=60, device="cuda", dtype=dtype))
    assert records_of(EvalRecord, gpu)[-1].val_loss == pytest.approx(records_of(EvalRecord, cpu)[-1].val_loss, abs=0.03)


@pytest.mark.gpu
def test_a_run_on_a_gpu_can_be_resumed(tmp_path):
    config = small_config(device="cuda", dtype="bfloat16", dropout=0.2)
    state = init_state(config, TOKENIZER)
    stops = itertools.count()
    train(tmp_path, state=state, stop=lambda: next(stops) > 4)
    state = restore_state(read_checkpoint(tmp_path / "last.safetensors"), {"device": "cuda"})
    _, records = train(tmp_path, state=state)
    assert records[-1].step == 12
