"""One step against the same written out, evaluation against brute force, the loop against what it promises."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from tiny_training import SMALL, TOKENIZER, TRAIN, VAL, records_of, small_config, train
from torch.nn import functional as F

from nanogpt_lite.checkpoint import checkpoint_file
from nanogpt_lite.checkpoint.checkpoint_file import read_checkpoint
from nanogpt_lite.checkpoint.restore import load_weights, read_config
from nanogpt_lite.data import batching
from nanogpt_lite.device import devices
from nanogpt_lite.errors import ExternalError, UserError
from nanogpt_lite.optim.schedule import learning_rate
from nanogpt_lite.tracking.records import CheckpointRecord, DoneRecord, EvalRecord, StartRecord, StepRecord
from nanogpt_lite.trainer import evaluation, loop
from nanogpt_lite.trainer.state import init_state, restore_state, save_state


@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_give_the_losses_of_the_whole_batch(tmp_path, parts):
    _, whole = train(tmp_path / "whole", small_config(batch_size=8))
    _, split = train(tmp_path / "split", small_config(batch_size=8 // parts, gradient_accumulation_steps=parts))
    for one, other in zip(records_of(EvalRecord, whole), records_of(EvalRecord, split), strict=True):
        assert other.val_loss == pytest.approx(one.val_loss, abs=1e-4)
        assert other.train_loss == pytest.approx(one.train_loss, abs=1e-4)
    assert records_of(StartRecord, whole)[0].tokens_per_step == records_of(StartRecord, split)[0].tokens_per_step == 64


def test_evaluation_covers_each_target_once(tmp_path):
    state = init_state(SMALL, TOKENIZER)
    model = state.model.eval()
    losses = []
    for position in range(1, len(VAL)):  # token by token, each with what stands before it in its window
        begin = (position - 1) // 8 * 8
        context = torch.from_numpy(VAL[begin:position].astype(np.int64))[None]
        losses.append(F.cross_entropy(model(context)[0][0, -1], torch.tensor(int(VAL[position]))).item())
    assert evaluation.val_loss(state, VAL) == pytest.approx(np.mean(losses), rel=1e-6)


def test_estimated_evaluation_is_deterministic_and_of_the_asked_number_of_batches(tmp_path):
    state = init_state(small_config(eval_iters=3), TOKENIZER)
    model = state.model.eval()
    windows = [
        batching.random_batch(VAL, rows=4, block_size=8, seed=1337, step=n, stream=batching.VAL_STREAM)
        for n in range(3)
    ]
    expected = np.mean([model(x, y)[1].item() for x, y in windows])
    assert evaluation.val_loss(state, VAL) == pytest.approx(expected, rel=1e-6)
    assert evaluation.val_loss(state, VAL) == evaluation.val_loss(state, VAL)


def test_evaluation_does_not_touch_training(tmp_path):
    config = small_config(dropout=0.3)
    _, rarely = train(tmp_path / "rarely", dataclasses.replace(config, eval_interval=100))
    _, often = train(tmp_path / "often", dataclasses.replace(config, eval_interval=1, eval_iters=2))
    assert [r.loss for r in records_of(StepRecord, rarely)] == [r.loss for r in records_of(StepRecord, often)]
    weights = [
        checkpoint_file.read_checkpoint(tmp_path / name / "last.safetensors").with_prefix("model.")
        for name in ("rarely", "often")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_training_does_not_touch_the_global_random_state(tmp_path):
    before = torch.get_rng_state()
    train(tmp_path, small_config(dropout=0.5))
    assert torch.equal(torch.get_rng_state(), before)


def test_records_come_in_order_and_say_what_happened(tmp_path):
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
            assert read_checkpoint(tmp_path / f"{record.name}.safetensors").metadata["step"] == record.step
    assert names == [("best", 5), ("last", 5), ("best", 10), ("last", 10), ("best", 12), ("last", 12)]


def test_best_is_the_lowest_loss_ever_and_a_worse_one_never_replaces_it(tmp_path, monkeypatch):
    losses = iter([3.0, 2.0, 2.5, 2.0, 1.5, 9.0])
    monkeypatch.setattr(evaluation, "val_loss", lambda *_, **__: next(losses))
    _, records = train(tmp_path, small_config(max_iters=6, eval_interval=1))
    evals = records_of(EvalRecord, records)
    assert [e.is_best for e in evals] == [True, True, False, False, True, False]
    assert [e.best_val_loss for e in evals] == [3.0, 2.0, 2.0, 2.0, 1.5, 1.5]
    assert read_checkpoint(tmp_path / "best.safetensors").metadata["step"] == 5
    assert read_checkpoint(tmp_path / "last.safetensors").metadata["best_step"] == 5
    assert (records[-1].best_val_loss, records[-1].best_step) == (1.5, 5)


def test_numbered_checkpoints_are_kept(tmp_path):
    train(tmp_path, small_config(keep_every=4))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "best.safetensors",
        "last.safetensors",
        *[f"step_{n:06d}.safetensors" for n in (4, 8, 12)],
    ]
    assert read_checkpoint(tmp_path / "step_000004.safetensors").metadata["step"] == 4


@pytest.mark.parametrize(
    ("options", "losses", "reason", "steps"),
    [
        ({"patience": 2}, [3.0, 2.0, 2.5, 2.6, 1.0], "patience", 4),
        ({"target_loss": 2.1}, [3.0, 2.5, 2.1, 1.0], "target_loss", 3),
        ({}, [3.0] * 12, "max_iters", 12),
    ],
)
def test_budgets_end_a_run(tmp_path, monkeypatch, options, losses, reason, steps):
    given = iter(losses)
    monkeypatch.setattr(evaluation, "val_loss", lambda *_, **__: next(given))
    _, records = train(tmp_path, small_config(eval_interval=1, **options))
    assert (records[-1].reason, records[-1].step) == (reason, steps)


def test_max_seconds_ends_with_an_evaluation(tmp_path, monkeypatch):
    clock = itertools.count(100.0, 10.0)  # each look at the clock is ten seconds later
    monkeypatch.setattr(loop.time, "monotonic", lambda: next(clock))
    _, records = train(tmp_path, small_config(max_seconds=35, eval_interval=1000))
    assert (records[-1].reason, records[-1].step) == ("max_seconds", 3)
    assert [r.step for r in records_of(EvalRecord, records)] == [3]
    assert read_checkpoint(tmp_path / "best.safetensors").metadata["step"] == 3


def test_a_finished_run_does_nothing_more(tmp_path):
    train(tmp_path)
    before = (tmp_path / "last.safetensors").stat().st_mtime_ns
    state = restore_state(read_checkpoint(tmp_path / "last.safetensors"), {})
    _, records = train(tmp_path, state=state)
    assert [type(r) for r in records] == [StartRecord, DoneRecord]
    assert (tmp_path / "last.safetensors").stat().st_mtime_ns == before


LATER = {"position": "rotary", "norm": "rms", "qk_norm": True, "activation": "relu2", "tied": False, "ngram": 3}
LATER |= {"zero_init": True, "ngram_dropout": 0.3, "optimizer": "muon", "cooldown": 0.5}


@pytest.mark.parametrize(
    "options", [{}, {"dropout": 0.2}, {"gradient_accumulation_steps": 2}, {"eval_iters": 2}, LATER]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_going_on_gives_the_same_file_and_the_same_losses(tmp_path, dtype, options):
    """Stopped every few steps, before evaluations, after them and between them, and taken up from the file."""
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
    assert told(pieces) == told(straight)


def told(records):
    """What step and evaluation records say, but for the time it took."""
    records = [record.to_json() for record in records if isinstance(record, StepRecord | EvalRecord)]
    return [{k: v for k, v in record.items() if k not in ("seconds", "tokens_per_second")} for record in records]


def test_a_stop_during_an_evaluation_loses_nothing(tmp_path):
    _, straight = train(tmp_path / "straight")
    state = init_state(SMALL, TOKENIZER)
    answers = itertools.chain([False] * 6, itertools.repeat(True))  # asked before each step, then in the evaluation
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
    assert saved.metadata["config"]["lr_decay_iters"] == 12
    state, records = train(tmp_path, state=restore_state(saved, {"max_iters": 15}))
    assert records[-1].step == 15
    assert state.config.lr_decay_iters == 12
    assert learning_rate(13, state.config) == state.config.min_lr


@pytest.mark.parametrize("where", ["loss", "gradient", "evaluation"])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch, where):
    state = init_state(small_config(log_interval=1 if where != "evaluation" else 1000, eval_interval=4), TOKENIZER)
    step = loop.train_step

    def failing(state, forward, batch):
        step(state, forward, batch)
        if state.step == 7 and where == "loss":
            state.since_log.total.fill_(math.nan)
        if state.step == 7 and where == "gradient":
            state.grad_norm = torch.tensor(math.inf)
        if state.step == 7 and where == "evaluation":
            state.model.lm_head.weight.data[0, 0] = math.nan

    monkeypatch.setattr(loop, "train_step", failing)
    with pytest.raises(ExternalError, match=r"not finite by step [78]; .*--init_from resume.*--learning_rate"):
        train(tmp_path, state=state)
    for name in ("last", "best"):
        good = read_checkpoint(tmp_path / f"{name}.safetensors")
        assert good.metadata["step"] == 4
        assert all(tensor.isfinite().all() for tensor in good.tensors.values())


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_val_loss_that_is_not_finite_is_no_evaluation(tmp_path, monkeypatch, broken):
    losses = iter([3.0, broken])
    monkeypatch.setattr(evaluation, "val_loss", lambda *_, **__: next(losses))
    with pytest.raises(ExternalError, match="not finite by step 10"):
        train(tmp_path)
    assert read_checkpoint(tmp_path / "last.safetensors").metadata["step"] == 5


def test_an_interrupted_run_with_a_broken_loss_is_not_saved(tmp_path):
    state = init_state(SMALL, TOKENIZER)
    state.since_eval.total.fill_(math.nan)
    with pytest.raises(ExternalError, match="not finite"):
        save_state(state, tmp_path / "last.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.02), ("float16", 0.003)])
def test_number_formats_train_to_nearly_the_same_loss(tmp_path, dtype, tolerance):
    exact, rough = (train(tmp_path / d, small_config(dtype=d, max_iters=60))[1][-1] for d in ("float32", dtype))
    assert rough.best_val_loss == pytest.approx(exact.best_val_loss, abs=tolerance)
    assert exact.best_val_loss < 1.9 < math.log(8)


def test_a_text_shorter_than_a_block_is_an_error(tmp_path):
    with pytest.raises(UserError, match="block_size=8.*8 tokens.*needs 9"):
        list(loop.train_loop(init_state(SMALL, TOKENIZER), TRAIN[:8], VAL, out_dir=tmp_path))


def test_batches_may_come_from_elsewhere(tmp_path):
    """The default batches, handed in, give the default run."""
    _, expected = train(tmp_path / "a")
    given = batching.random_batches(TRAIN, rows=4, block_size=8, seed=1337, step=0)
    _, got = train(tmp_path / "b", train_batches=given)
    assert [r.loss for r in records_of(StepRecord, got)] == [r.loss for r in records_of(StepRecord, expected)]


def test_restoring_another_network_names_the_fields(tmp_path):
    train(tmp_path)
    saved = read_checkpoint(tmp_path / "last.safetensors")
    with pytest.raises(UserError, match=r"n_layer=3 \(the checkpoint has 2\), bias=False \(the checkpoint has True\)"):
        restore_state(saved, {"n_layer": 3, "bias": False, "learning_rate": 1e-4})
    with pytest.raises(UserError, match="tokenizer=byte"):
        restore_state(saved, {"tokenizer": "byte"})
    state = restore_state(saved, {"n_layer": 2, "tokenizer": "auto", "learning_rate": 5e-4, "init_from": "resume"})
    assert state.config.learning_rate == 5e-4
    assert read_config(saved, {}).learning_rate == 1e-3
    assert state.config.init_from == "scratch"


def test_restoring_settles_what_is_left_to_the_machine(tmp_path):
    train(tmp_path, small_config(dtype="bfloat16"))
    saved = read_checkpoint(tmp_path / "last.safetensors")
    config = restore_state(saved, {"dtype": "auto", "threads": 0, "lr_decay_iters": 0, "max_iters": 20}).config
    assert (config.dtype, config.threads, config.lr_decay_iters) == ("bfloat16", 1, 20)
    assert restore_state(saved, {"dtype": "float32", "threads": 2}).config.dtype == "float32"
    saved.metadata["device"] = "cuda"  # where bfloat16 was chosen for it
    assert restore_state(saved, {}).config.dtype == "float32"
    saved.metadata["ranks"] = 2  # each with a thread of its own
    assert restore_state(saved, {}).config.threads == devices.resolve_threads(0) != 1
    assert restore_state(saved, {"threads": 1}).config.threads == 1


@pytest.mark.parametrize(
    "scaler",
    [
        {"scale": 0.0},
        {"scale": -1.0},
        {"scale": 1e300},
        {"scale": 7},
        {"_growth_tracker": -1},
        {"_growth_tracker": 1.0},
    ],
)
def test_a_loss_scaler_that_would_stop_all_learning_is_refused(tmp_path, scaler):
    train(tmp_path, small_config(dtype="float16"))
    saved = read_checkpoint(tmp_path / "last.safetensors")
    before = dict(saved.metadata["scaler"])
    saved.metadata["scaler"].update(
        {"growth_factor": 0.5, "growth_interval": 0}
    )  # what no run changes, none takes over
    assert restore_state(saved, {}).scaler.state_dict() == before
    saved.metadata["scaler"].update(scaler)
    with pytest.raises(UserError, match="its loss scaler has no numbers"):
        restore_state(saved, {})


def test_weights_of_another_shape_are_refused(tmp_path):
    train(tmp_path)
    other = init_state(small_config(n_embd=32), TOKENIZER).model
    with pytest.raises(UserError, match="do not fit"):
        load_weights(other, read_checkpoint(tmp_path / "last.safetensors"))


@pytest.mark.parametrize("missing", ["tokenizer", "since_eval", "config", "step", "device"])
def test_a_checkpoint_that_lacks_something_is_an_error(tmp_path, missing):
    train(tmp_path)
    saved = read_checkpoint(tmp_path / "last.safetensors")
    del saved.metadata[missing]
    with pytest.raises(UserError, match=f"whole training state.*{missing}"):
        restore_state(saved, {})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's compiler uses what PyTorch deprecates
@pytest.mark.parametrize("options", [{}, {**LATER, "ngram_dropout": 0.0}], ids=["nanoGPT", "later"])
def test_a_compiled_network_trains_the_same(tmp_path, options):
    _, plain = train(tmp_path / "plain", small_config(**options))
    _, compiled = train(tmp_path / "compiled", small_config(compile=True, **options))
    for one, other in zip(records_of(EvalRecord, plain), records_of(EvalRecord, compiled), strict=True):
        assert other.val_loss == pytest.approx(one.val_loss, abs=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_gpu_trains_to_the_losses_of_the_cpu(tmp_path, dtype):
    _, cpu = train(tmp_path / "cpu", small_config(max_iters=60))
    _, gpu = train(tmp_path / "gpu", small_config(max_iters=60, device="cuda", dtype=dtype))
    assert records_of(EvalRecord, gpu)[-1].val_loss == pytest.approx(records_of(EvalRecord, cpu)[-1].val_loss, abs=0.03)


@pytest.mark.gpu
def test_on_a_gpu_a_resumed_run_goes_on(tmp_path):
    config = small_config(device="cuda", dtype="bfloat16", dropout=0.2)
    state = init_state(config, TOKENIZER)
    stops = itertools.count()
    train(tmp_path, state=state, stop=lambda: next(stops) > 4)
    state = restore_state(read_checkpoint(tmp_path / "last.safetensors"), {"device": "cuda"})
    _, records = train(tmp_path, state=state)
    assert records[-1].step == 12
