"""Evaluation against brute force, and with limited memory."""

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from limited_memory import LimitedMemory
from tiny_training import SMALL, TOKENIZER, VAL, records_of, small_config, train
from torch.nn import functional as F

from nanogpt_lite.checkpoint import checkpoint_file
from nanogpt_lite.data import batching
from nanogpt_lite.device import memory
from nanogpt_lite.tracking.records import StepRecord
from nanogpt_lite.trainer import evaluation
from nanogpt_lite.trainer.state import init_state


def val_loss(state):
    """The loss on the val split, which is that of the network: there is no n-gram expert."""
    losses = evaluation.val_losses(state, VAL)
    assert losses is not None
    assert losses.loss == losses.network_loss
    return losses.loss


def test_evaluation_covers_each_target_once(tmp_path):
    state = init_state(SMALL, TOKENIZER)
    model = state.model.eval()
    losses = []
    for position in range(1, len(VAL)):  # one target at a time, with the tokens before it in its window
        begin = (position - 1) // 8 * 8
        context = torch.from_numpy(VAL[begin:position].astype(np.int64))[None]
        losses.append(F.cross_entropy(model(context)[0][0, -1], torch.tensor(int(VAL[position]))).item())
    assert val_loss(state) == pytest.approx(np.mean(losses), rel=1e-6)


def test_estimated_evaluation_is_the_mean_over_eval_iters_batches(tmp_path):
    state = init_state(small_config(eval_iters=3), TOKENIZER)
    model = state.model.eval()
    windows = [
        batching.random_batch(VAL, rows=4, block_size=8, seed=1337, step=n, stream=batching.VAL_STREAM)
        for n in range(3)
    ]
    expected = np.mean([model(x, y)[1].item() for x, y in windows])
    assert val_loss(state) == pytest.approx(expected, rel=1e-6)
    assert evaluation.val_losses(state, VAL) == evaluation.val_losses(state, VAL)


def test_evaluation_does_not_change_training(tmp_path):
    config = small_config(dropout=0.3)
    _, rarely = train(tmp_path / "rarely", dataclasses.replace(config, eval_interval=100))
    _, often = train(tmp_path / "often", dataclasses.replace(config, eval_interval=1, eval_iters=2))
    assert [r.loss for r in records_of(StepRecord, rarely)] == [r.loss for r in records_of(StepRecord, often)]
    weights = [
        checkpoint_file.read_checkpoint(tmp_path / name / "last.safetensors").with_prefix("model.")
        for name in ("rarely", "often")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("max_rows", [1, 5])
def test_evaluation_with_limited_memory_gives_the_same_loss(max_rows):
    state = init_state(SMALL, TOKENIZER)
    whole = evaluation.mean_losses(state.model, evaluation.split_windows(VAL, state.model), state.device, "float32")
    limited: Any = LimitedMemory(state.model, max_rows, "forward")
    limited.eval = state.model.eval
    limited.losses = lambda x, y: limited(x, y)[1].expand(2)
    limited_loss = evaluation.mean_losses(limited, evaluation.split_windows(VAL, state.model), state.device, "float32")
    assert limited_loss == pytest.approx(whole, abs=1e-6)
    limited.max_rows = 0
    with pytest.raises(torch.OutOfMemoryError):
        evaluation.mean_losses(limited, evaluation.split_windows(VAL, state.model), state.device, "float32")


def test_an_evaluation_finds_out_once_how_many_rows_fit_into_memory(monkeypatch):
    """Batches of 8, 8 and 3 rows, of which 3 fit: halved to 4 and to 2 in the first one."""
    state, num_frees = init_state(SMALL, TOKENIZER), itertools.count()
    monkeypatch.setattr(memory, "free_memory", lambda device: next(num_frees))
    limited: Any = LimitedMemory(state.model, 3, "forward")
    limited.eval = state.model.eval
    limited.losses = lambda x, y: limited(x, y)[1].expand(2)
    ids = torch.from_numpy(VAL[: 19 * 8 + 1].astype(np.int64))
    windows = list(zip(ids[:-1].view(19, 8).split(8), ids[1:].view(19, 8).split(8), strict=True))
    losses = evaluation.mean_losses(limited, windows, state.device, "float32")
    assert losses is not None
    assert (
        losses.loss
        == losses.network_loss
        == pytest.approx(state.model(ids[:-1].view(19, 8), ids[1:].view(19, 8))[1].item(), abs=1e-6)
    )
    assert next(num_frees) == 2


def test_of_a_long_val_split_evenly_spread_windows_are_evaluated():
    state = init_state(small_config(eval_tokens=24), TOKENIZER)
    model = state.model.eval()
    losses = []
    for window in (0, 8, 16):  # of the 25 windows of 8 tokens in 203
        ids = torch.from_numpy(VAL[8 * window : 8 * window + 9].astype(np.int64))[None]
        losses.append(model(ids[:, :-1], ids[:, 1:])[1].item())
    assert val_loss(state) == pytest.approx(np.mean(losses), rel=1e-6)
    whole = evaluation.val_losses(init_state(small_config(eval_tokens=0), TOKENIZER), VAL)
    for eval_tokens in (102, 1000):  # a split of less than twice as many is evaluated as a whole
        state = init_state(small_config(eval_tokens=eval_tokens), TOKENIZER)
        assert evaluation.val_losses(state, VAL) == whole


def test_spread_windows_are_among_all_windows_and_spread_over_the_split():
    ids = np.arange(1000)
    whole = {tuple(row) for x, _ in batching.all_windows(ids, rows=7, block_size=6) for row in x.tolist()}
    for n_windows in (1, 2, 55, 166):
        batches = list(batching.spread_windows(ids, rows=7, block_size=6, n_windows=n_windows))
        assert all(torch.equal(x + 1, y) for x, y in batches)
        windows = [tuple(row) for x, _ in batches for row in x.tolist()]
        assert len(set(windows)) == n_windows
        assert set(windows) <= whole
        starts = np.array([window[0] for window in windows])
        gaps = np.diff([*starts, 996])
        assert max(gaps) - min(gaps) <= 6


@pytest.mark.parametrize(
    ("device", "vocab_size", "expected"),
    [("cpu", 65, 4096), ("mps", 65, 4096), ("cuda", 65, 65536), ("cuda", 50257, 5341), ("cuda", 10**6, 4096)],
)
def test_a_gpu_takes_larger_batches_unless_the_logits_are_too_large(device, vocab_size, expected):
    assert evaluation.batch_tokens(torch.device(device), vocab_size) == expected
