"""Random batches are a pure function of (seed, step), and `all_windows` covers the whole split."""

import hashlib
import itertools
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nanogpt_lite.config.options import TrainConfig
from nanogpt_lite.data.batching import (
    BATCHES,
    TRAIN_STREAM,
    VAL_STREAM,
    WithoutParts,
    all_windows,
    random_batch,
    require_length,
    spread_batch,
    train_batches,
)
from nanogpt_lite.errors import UserError
from nanogpt_lite.tokenizers.base import Ids

TOKENS = np.random.default_rng(0).integers(0, 60_000, 1000).astype(np.uint16)


def zeros(length: int) -> Ids:
    return np.zeros(length, dtype=np.uint16)


def number_in(text: str, pattern: str) -> int:
    match = re.search(pattern, text)
    assert match
    return int(match[1])


@pytest.mark.parametrize("sampling", BATCHES)
def test_batch_of_a_step_does_not_depend_on_the_first_step(sampling):
    options = {"rows": 5, "block_size": 8, "seed": 3}
    for start in (0, 1, 7, 1000):
        batches = train_batches(TOKENS, step=start, sampling=sampling, **options)
        for number, (x, y) in enumerate(itertools.islice(batches, 4)):
            expected_x, expected_y = BATCHES[sampling](TOKENS, step=start + number, **options)
            assert torch.equal(x, expected_x)
            assert torch.equal(y, expected_y)


def test_batch_does_not_use_or_change_global_rng_state():
    np.random.seed(5)
    torch.manual_seed(5)
    numpy_state, torch_state = str(np.random.get_state()), torch.get_rng_state()
    first = random_batch(TOKENS, rows=4, block_size=8, seed=1, step=2)
    assert str(np.random.get_state()) == numpy_state
    assert torch.equal(torch.get_rng_state(), torch_state)
    torch.manual_seed(6)
    assert torch.equal(first[0], random_batch(TOKENS, rows=4, block_size=8, seed=1, step=2)[0])


@pytest.mark.parametrize("sampling", BATCHES)
def test_batch_is_the_same_in_another_process(sampling):
    code = f"""
import numpy, hashlib
from nanogpt_lite.data.batching import BATCHES
x, y = BATCHES["{sampling}"](numpy.arange(5000, dtype="uint16"), rows=64, block_size=32, seed=2**63 - 1, step=12345)
print(hashlib.sha256(x.numpy().tobytes() + y.numpy().tobytes()).hexdigest())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    x, y = BATCHES[sampling](np.arange(5000, dtype="uint16"), rows=64, block_size=32, seed=2**63 - 1, step=12345)
    assert done.stdout.strip() == hashlib.sha256(x.numpy().tobytes() + y.numpy().tobytes()).hexdigest()


@settings(deadline=None)
@pytest.mark.parametrize("sampling", BATCHES)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 40), st.integers(0, 2**63 - 1), st.integers(0, 10**9))
def test_rows_are_windows_and_targets_are_the_next_tokens(sampling, rows, block_size, longer, seed, step):
    tokens = np.random.default_rng(1).permutation(1000).astype(np.uint16)[: block_size + longer]
    x, y = BATCHES[sampling](tokens, rows=rows, block_size=block_size, seed=seed, step=step)
    assert x.shape == y.shape == (rows, block_size)
    assert x.dtype == y.dtype == torch.int64
    for inputs, targets in zip(x.numpy(), y.numpy(), strict=True):
        first = tokens.tolist().index(inputs[0])  # all tokens are different
        assert inputs.tolist() == tokens[first : first + block_size].tolist()
        assert targets.tolist() == tokens[first + 1 : first + 1 + block_size].tolist()


def test_shortest_split_has_one_window():
    x, y = random_batch(np.arange(9), rows=50, block_size=8, seed=0, step=0)
    assert x.tolist() == [list(range(8))] * 50
    assert y.tolist() == [list(range(1, 9))] * 50


@pytest.mark.parametrize(("seed", "stream"), [(0, TRAIN_STREAM), (1337, VAL_STREAM), (2**63 - 1, TRAIN_STREAM)])
def test_window_positions_are_uniform(seed, stream):
    """Chi-square tests over all positions, and over pairs of positions of adjacent rows and of adjacent steps."""
    n_positions, rows, steps, block_size = 8, 40, 100, 5
    tokens = np.arange(n_positions + block_size)  # the last window ends with the last token
    starts = np.array(
        [
            random_batch(tokens, rows=rows, block_size=block_size, seed=seed, step=step, stream=stream)[0][:, 0].numpy()
            for step in range(steps)
        ]
    )
    pairs = {"rows": n_positions * starts[:, :-1] + starts[:, 1:], "steps": n_positions * starts[:-1] + starts[1:]}
    for values, cells, limit in [(starts, 8, 24.3), (pairs["rows"], 64, 103.4), (pairs["steps"], 64, 103.4)]:
        counts = np.bincount(values.ravel(), minlength=cells)
        assert len(counts) == cells
        expected = values.size / cells
        assert ((counts - expected) ** 2 / expected).sum() < limit  # p = 0.001 for cells - 1 degrees of freedom


def test_each_seed_step_and_stream_gives_another_batch():
    def first_tokens(**changed: int) -> tuple[int, ...]:
        values = {"seed": 0, "step": 0, "stream": TRAIN_STREAM, **changed}
        return tuple(random_batch(np.arange(10**6), rows=8, block_size=4, **values)[0][:, 0].tolist())

    batches = [
        *[first_tokens(step=step) for step in range(50)],
        *[first_tokens(seed=seed) for seed in range(1, 50)],
        *[first_tokens(stream=VAL_STREAM, step=step) for step in range(50)],
    ]
    assert len(set(batches)) == len(batches)
    starts = [start for batch in batches for start in batch]
    assert len(set(starts)) > 0.99 * len(starts)  # they do not share rows either


@settings(deadline=None)
@example(2, 1, 1)
@example(2, 64, 12)
@example(65, 64, 12)
@example(66, 64, 12)
@given(st.integers(2, 200), st.integers(1, 70), st.integers(1, 9))
def test_all_windows_cover_each_target_once(length, block_size, rows):
    tokens = TOKENS[:length]
    inputs, targets = [], []
    batches = list(all_windows(tokens, rows=rows, block_size=block_size))
    for number, (x, y) in enumerate(batches):
        assert x.shape == y.shape
        assert x.dtype == y.dtype == torch.int64
        assert 1 <= x.shape[0] <= rows
        assert x.shape[1] == block_size or number == len(batches) - 1
        assert x.shape[1] <= block_size
        inputs += x.flatten().tolist()
        targets += y.flatten().tolist()
    assert inputs == tokens[:-1].tolist()
    assert targets == tokens[1:].tolist()
    whole, rest = divmod(length - 1, block_size)
    assert len(batches) == -(-whole // rows) + (rest > 0)  # the fewest possible


@pytest.mark.parametrize("block_size", [1, 2, 16, 256])
@pytest.mark.parametrize("short", ["train", "val"])
def test_split_shorter_than_one_window_is_refused(block_size, short):
    enough, few = zeros(block_size + 1), zeros(block_size)
    require_length(enough, enough, block_size=block_size, sampled_val=True)
    require_length(enough, few, block_size=block_size, sampled_val=False)  # a full evaluation takes shorter windows
    train, val = (few, enough) if short == "train" else (enough, few)
    with pytest.raises(UserError) as caught:
        require_length(train, val, block_size=block_size, sampled_val=True)
    message = str(caught.value)
    assert f"its {short} split has {block_size} tokens, one block needs {block_size + 1}" in message
    # the length that the message recommends is enough
    length = number_in(message, r"about (\d+) tokens")
    split_at = int(0.9 * length)
    if short == "train":
        require_length(zeros(split_at), enough, block_size=block_size, sampled_val=True)
    else:
        require_length(enough, zeros(length - split_at), block_size=block_size, sampled_val=True)
    # the block_size that it recommends is the largest possible
    recommended = number_in(message, r"at most (\d+)$")
    if block_size > 1:
        require_length(train, val, block_size=recommended, sampled_val=True)
        with pytest.raises(UserError):
            require_length(train, val, block_size=recommended + 1, sampled_val=True)


def times_seen(sampling, *, rows, first_step, steps, block_size=16, length=20_003, seed=1):
    """How often each of `length` tokens is a target in `steps` batches."""
    tokens, seen = np.arange(length, dtype=np.uint16), np.zeros(length, dtype=np.int64)
    batches = train_batches(tokens, rows=rows, block_size=block_size, seed=seed, step=first_step, sampling=sampling)
    for _, targets in itertools.islice(batches, steps):
        np.add.at(seen, targets.numpy().ravel(), 1)
    return seen[2 * block_size : -2 * block_size]  # no window begins before the first token or ends after the last one


@pytest.mark.parametrize(("seed", "first_step"), [(1, 0), (2, 0), (1, 10**9)])
def test_spread_batches_see_each_token_about_equally_often(seed, first_step):
    epoch = 125  # steps of ten windows of 16 of the 20,003 tokens
    options = {"rows": 10, "seed": seed, "first_step": first_step}
    one, ten = (times_seen("spread", steps=steps, **options) for steps in (epoch, 10 * epoch))
    assert (one == 0).mean() < 0.2
    assert one.max() <= 2
    assert ten.max() <= 12
    assert ten.min() >= 8
    at_random = times_seen("random", steps=epoch, **options)
    assert (at_random == 0).mean() == pytest.approx(np.exp(-1), abs=0.03)


def test_the_samplings_are_the_values_of_the_option():
    with pytest.raises(UserError, match=f"one of {', '.join(BATCHES)}"):
        TrainConfig.from_dict({"batch_sampling": "no"})


def test_spread_batches_begin_elsewhere_with_another_seed_and_each_has_windows_from_the_whole_split():
    tokens = np.arange(60_000, dtype=np.uint16)
    one, other = (spread_batch(tokens, rows=32, block_size=8, seed=seed, step=0)[0][:, 0] for seed in (1, 2))
    assert not np.isin(one.numpy(), other.numpy()).any()
    for step in (0, 7, 10**12):
        starts = spread_batch(tokens, rows=32, block_size=8, seed=1, step=step)[0][:, 0].sort().values
        assert starts.diff().max() < 3 * 60_000 / 32


@pytest.mark.parametrize(
    ("starts", "length"),
    [([300], 50), ([0], 7), ([990], 10), ([500], 0), ([0], 1000), ([], 9), ([0, 300, 302, 997], 2)],
)
def test_a_split_without_parts_is_like_one_that_never_had_them(starts, length):
    without = WithoutParts(TOKENS, starts, length)
    expected = np.delete(TOKENS, [start + i for start in starts for i in range(length)])
    assert len(without) == len(expected)
    parts = [(0, 10), (290, 310), (300, 305), (295, 300), (900, 2000), (-3, None), (None, 5), (None, None), (700, 600)]
    for part in itertools.starmap(slice, parts):
        assert without[part].tolist() == expected[part].tolist()
