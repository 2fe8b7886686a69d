"""Flipped bits and data that changes during a run are errors, and nothing that was saved is lost."""

import contextlib
import os
import random
import re
import signal
from pathlib import Path

import faulty_run
import forked_ranks
import numpy as np
import pytest
import torch
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
from nanogpt_lite.data import verification

pytestmark = pytest.mark.posix("forks processes, kills them, and limits what they may write")
undisturbed = faulty_run.undisturbed  # a fixture


def flip_bit(content, bit):
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize("count", [400, pytest.param(20_000, marks=pytest.mark.slow)])
def test_flipped_bit_in_a_checkpoint_is_an_error(undisturbed, tmp_path, count, case_counts):
    content = undisturbed[0][2]["last"]
    path, rng = tmp_path / "flipped.safetensors", random.Random(count)
    for _ in range(count):
        path.write_bytes(flip_bit(content, rng.randrange(8 * len(content))))
        with pytest.raises(ng.UserError, match="damaged|not written by this program|of another format"):
            checkpoint_file.read_checkpoint(path)
    case_counts["bits flipped"] += count


def test_flipped_bit_in_the_tokens_is_an_error(text_file, case_counts):
    dataset = ng.prepare("bottles.txt")
    ng.train(dataset, **{**OPTIONS, "out_dir": OUT})
    rng = random.Random(0)
    for name in ("train.bin", "val.bin"):
        path = dataset.path / name
        content = path.read_bytes()
        for _ in range(20):
            path.write_bytes(flip_bit(content, rng.randrange(8 * len(content))))
            for call in (
                lambda: ng.train(dataset, **{**OPTIONS, "out_dir": "runs/new"}),
                lambda: ng.train(out_dir=OUT, init_from="resume", max_iters=20),
                lambda: ng.evaluate(ng.Run(OUT)),
            ):
                with pytest.raises(
                    ng.UserError, match="not those of the text .* `out_dir='data/bottles'` `overwrite=True`"
                ):
                    call()
        path.write_bytes(content)
    ng.prepare("bottles.txt", overwrite=True)
    with contextlib.suppress(FileNotFoundError):
        assert not list(Path("runs/new").iterdir())
    case_counts["bits flipped"] += 40


def change_in_place(path, content):
    with path.open("r+b") as file:
        file.write(content)


def replace(path, content):
    other = path.with_suffix(".other")
    other.write_bytes(content)
    other.replace(path)


def truncate(path, content):
    os.truncate(path, len(content) // 2)


def touch(path, content):
    os.utime(path)


@pytest.mark.parametrize("name", ["train.bin", "val.bin"])
@pytest.mark.parametrize("change", [change_in_place, truncate])
def test_tokens_changed_during_a_run_end_it_and_keep_the_last_save(text_file, change, name, case_counts):
    path = ng.prepare("bottles.txt").path / name
    content = path.read_bytes()
    process = start_training({"max_iters": 10**6, "lr_decay_iters": 12})
    wait_for((OUT / "last.safetensors").exists)
    change(path, flip_bit(content, 100))
    assert forked_ranks.statuses([process]) == [1]
    assert re.match(
        r"UserError: the tokens in .*bottles are not those of the text", Path("rank0.error").read_text(encoding="utf-8")
    )
    require_readable()
    ng.prepare("bottles.txt", overwrite=True)
    end = checkpoint_file.read_checkpoint(OUT / "last.safetensors").metadata.step + 5
    assert exit_status_of(train, {"max_iters": end, "lr_decay_iters": 12}) == 0
    after = reproducible_parts()
    delete_run()
    assert exit_status_of(train, {"max_iters": end, "lr_decay_iters": 12}) == 0
    assert reproducible_parts()[2] == after[2]
    case_counts["data changed under a run"] += 1


@pytest.mark.parametrize("change", [change_in_place, truncate])
def test_tokens_changed_just_before_reading_are_not_used(text_file, change, case_counts):
    data = ng.prepare("bottles.txt")
    path = data.path / "train.bin"
    with verification.open_verified(data) as (train_tokens, val_tokens):
        assert np.array_equal(train_tokens[3:40], data.train[3:40])
        assert np.array_equal(val_tokens[len(val_tokens) - 5 :], data.val[-5:])
        change(path, flip_bit(path.read_bytes(), 100))
        os.utime(path)  # the clock of the file system may be coarse
        for part in (slice(3, 40), slice(len(data.train) - 5, None)):
            with pytest.raises(ng.UserError, match="are not those of the text"):
                train_tokens[part]
    case_counts["data changed under a run"] += 1


def test_changed_tokens_are_not_used_after_a_new_file_replaces_them(text_file, case_counts):
    """The open file is the damaged one, although another file has its name now."""
    data = ng.prepare("bottles.txt")
    path = data.path / "train.bin"
    content = path.read_bytes()
    with verification.open_verified(data) as (train_tokens, _):
        assert len(train_tokens[5:3]) == 0
        change_in_place(path, flip_bit(content, 100))
        os.utime(path)
        replace(path, content)
        for _ in range(2):
            with pytest.raises(ng.UserError, match="are not those of the text"):
                train_tokens[3:40]
        path.unlink()
        with pytest.raises(ng.UserError, match="are not those of the text"):
            train_tokens[3:40]
    case_counts["data changed under a run"] += 1


@pytest.mark.parametrize("change", [replace, touch])
def test_replacing_or_touching_the_token_file_does_not_end_a_run(text_file, change, case_counts):
    path = ng.prepare("bottles.txt").path / "train.bin"
    content = path.read_bytes()
    process = start_training({"max_iters": 10**6})
    wait_for((OUT / "last.safetensors").exists)
    change(path, flip_bit(content, 100))
    steps = len(ng.Run(OUT).metrics)
    wait_for(lambda: len(ng.Run(OUT).metrics) > steps + 5)
    os.kill(process.pid, signal.SIGTERM)
    assert forked_ranks.statuses([process]) == [130]
    replace(path, content)
    stopped = checkpoint_file.read_checkpoint(OUT / "last.safetensors")
    weights = {name: tensor.clone() for name, tensor in stopped.tensors.items()}
    delete_run()
    assert exit_status_of(train, {"max_iters": stopped.metadata.step, "lr_decay_iters": 10**6}) == 0
    undisturbed = checkpoint_file.read_checkpoint(OUT / "last.safetensors").tensors
    assert all(torch.equal(tensor, undisturbed[name]) for name, tensor in weights.items())
    case_counts["data changed under a run"] += 1
