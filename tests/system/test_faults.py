"""After a fault during training, the files on disk are complete, and the resumed run equals an undisturbed one.

Each fault happens to a real process: it is killed where a file changes or at a random moment, or the operating system
refuses an operation. `pytest --slow` runs all cases; its last lines count them.
"""

import os
import random
import signal
import time
from pathlib import Path
from unittest.mock import patch

import faulty_run
import forked_ranks
import pytest
from conftest import wait_for
from faulty_run import (
    OPTIONS,
    OUT,
    delete_run,
    exit_status_of,
    reproducible_parts,
    require_readable,
    start_training,
    train,
)

import nanogpt_lite as ng
from nanogpt_lite.checkpoint import checkpoint_file
from nanogpt_lite.trainer import loop, step

pytestmark = pytest.mark.posix("forks processes, kills them, and limits what they may write")
undisturbed = faulty_run.undisturbed  # a fixture


def require_same_run_after_kills(points, expected):
    for fatal in points:
        assert exit_status_of(train, {}, fatal) == -signal.SIGKILL
        if OUT.is_dir():
            require_readable()
        assert exit_status_of(train, {}) == 0
        assert reproducible_parts() == expected, f"killed at point {fatal}"
        delete_run()


def test_resume_is_bit_exact_after_a_kill_at_any_point_of_a_save(undisturbed, case_counts):
    expected, points = undisturbed
    saves = [number for number, point in enumerate(points) if point == "before the write"]
    # the save of `last` at the second evaluation, from its touch on
    faults = range(saves[3] - 1, saves[4] - 1)
    assert {points[number] for number in faults} == set(points)
    require_same_run_after_kills(faults, expected)
    case_counts["faults at points of a save"] += len(faults)


@pytest.mark.slow
def test_resume_is_bit_exact_after_a_kill_at_every_point_of_a_run(undisturbed, case_counts):
    expected, points = undisturbed
    require_same_run_after_kills(range(len(points)), expected)
    case_counts["faults at points of a save"] += len(points)


@pytest.mark.parametrize("count", [4, pytest.param(60, marks=pytest.mark.slow)])
def test_resume_is_bit_exact_after_kills_at_random_moments(text_file, count, case_counts):
    ng.prepare("bottles.txt")
    rng, options = random.Random(count), {"eval_interval": 7, "keep_every": 50, "lr_decay_iters": 500}
    for _ in range(count):
        process = start_training({**options, "max_iters": 10**6})
        time.sleep(rng.uniform(0.0, 0.2))  # the random moment
        process.kill()
        assert forked_ranks.statuses([process]) == [-signal.SIGKILL]
        if OUT.is_dir():
            require_readable()
    end = 10 + max(
        [checkpoint_file.read_checkpoint(path).metadata.step for path in OUT.glob("last.safetensors")], default=0
    )
    assert exit_status_of(train, {**options, "max_iters": end}) == 0
    expected = reproducible_parts()
    delete_run()
    assert exit_status_of(train, {**options, "max_iters": end}) == 0
    assert reproducible_parts() == expected
    case_counts["kills at random moments"] += count


def train_with_file_size_limit(options, limit):
    """No file can get longer than `limit` bytes: the operating system refuses, as it does on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    import resource  # Windows has none

    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    train(options)


@pytest.mark.parametrize("fraction", [0.3, 0.6, 0.9])
def test_full_disk_ends_a_run_with_its_last_save_and_it_resumes(undisturbed, fraction, case_counts):
    expected, _ = undisturbed
    assert exit_status_of(train, {"max_iters": 4, "lr_decay_iters": 12}) == 0
    before = {path: path.read_bytes() for path in OUT.glob("*.safetensors")}
    limit = int(fraction * len(expected[2]["last"]))
    assert exit_status_of(train_with_file_size_limit, {"max_iters": 12}, limit) == 1
    message = Path("rank0.error").read_text(encoding="utf-8")
    assert "OSError" in message
    assert "File too large" in message or "No space left" in message
    assert {path: path.read_bytes() for path in before} == before
    assert not list(OUT.glob(".*.tmp"))
    assert exit_status_of(train, {}) == 0
    assert reproducible_parts()[1:] == expected[1:]
    case_counts["refused by the system"] += 1


def train_as_nobody(options):
    if os.geteuid() == 0:
        ng.train(
            "bottles.txt", **{**OPTIONS, "out_dir": "runs/before"}
        )  # imports everything, which `nobody` may not do
        os.setuid(65534)
    train(options)


def test_read_only_folder_is_an_error_and_stays_unchanged(undisturbed, case_counts):
    expected, _ = undisturbed
    assert exit_status_of(train, {}) == 0
    for folder, mode in ((Path(), 0o777), (OUT, 0o555)):
        folder.chmod(mode)
    try:
        assert exit_status_of(train_as_nobody, {"max_iters": 20}) == 1
        assert "Permission denied" in Path("rank0.error").read_text(encoding="utf-8")
    finally:
        OUT.chmod(0o755)
    assert reproducible_parts() == expected
    case_counts["refused by the system"] += 1


def test_second_interrupt_ends_at_once_and_keeps_the_last_save(undisturbed, case_counts):
    (process,) = forked_ranks.Job().start(1, train_that_hangs, {"max_iters": 1000})
    assert process.pid is not None
    wait_for((OUT / "hanging").exists)
    os.kill(process.pid, signal.SIGINT)
    process.join(0.5)
    assert process.is_alive()  # the first one waits for the end of the step
    while process.is_alive():
        os.kill(process.pid, signal.SIGINT)  # two signals at the same time may count as one
        process.join(0.5)
    assert forked_ranks.statuses([process]) == [130]
    require_readable()
    (OUT / "hanging").unlink()
    assert exit_status_of(train, {"max_iters": 12, "lr_decay_iters": 12}) == 0
    assert reproducible_parts()[2] == undisturbed[0][2]
    case_counts["interrupted twice"] += 1


def train_that_hangs(options):
    """A step after the second evaluation never ends."""
    original = step.train_step

    def hanging_step(state, forward, batch):
        if state.step == 9:
            (OUT / "hanging").touch()
            while True:
                time.sleep(0.01)  # a step that hangs
        original(state, forward, batch)

    with patch.object(loop, "train_step", hanging_step):
        train({**options, "lr_decay_iters": 12})
