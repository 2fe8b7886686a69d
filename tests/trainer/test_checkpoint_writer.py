"""Checkpoints that a thread writes while training goes on: the same files, and a record for each that is complete."""

import itertools
import math
import threading

import pytest
import torch
from tiny_training import TOKENIZER, TRAIN, VAL, records_of, small_config, train

from nanogpt_lite.checkpoint import checkpoint_file
from nanogpt_lite.checkpoint.checkpoint_file import read_checkpoint
from nanogpt_lite.device import devices
from nanogpt_lite.device.distributed import ProcessGroup
from nanogpt_lite.errors import ExternalError
from nanogpt_lite.tracking.records import CheckpointRecord, DoneRecord, EvalRecord, StepRecord
from nanogpt_lite.trainer import checkpoint_writer, loop
from nanogpt_lite.trainer import step as step_module
from nanogpt_lite.trainer.state import init_state

CONFIG = small_config(keep_every=4, max_iters=12, eval_interval=5, log_interval=3)


@pytest.fixture(autouse=True)
def one_thread():
    """More threads only wait for each other, with networks of this size."""
    with devices.compute_settings(1, tf32=False):
        yield


@pytest.fixture
def background(monkeypatch):
    """A thread writes, as with a GPU."""
    monkeypatch.setattr(checkpoint_writer, "writes_in_background", lambda state: True)


class SlowDisk:
    """Writes a checkpoint when it is let; those whose names are in `full_for` find no space left."""

    def __init__(self, monkeypatch):
        self.write, self.may_write = checkpoint_file.write_checkpoint, threading.Event()
        self.threads, self.full_for = [], set()
        monkeypatch.setattr(checkpoint_file, "write_checkpoint", self)

    def __call__(self, path, tensors, metadata):
        self.threads.append(threading.current_thread())
        assert self.may_write.wait(20)
        if path.stem in self.full_for:
            raise OSError(28, "No space left on device", str(path))
        self.write(path, tensors, metadata)


def test_files_and_records_are_those_of_a_training_that_waits(tmp_path, monkeypatch):
    _, expected = train(tmp_path / "waits", CONFIG)
    monkeypatch.setattr(checkpoint_writer, "writes_in_background", lambda state: True)
    _, records = train(tmp_path / "goes on", CONFIG)
    names = sorted(path.name for path in (tmp_path / "waits").iterdir())
    assert names == ["best.safetensors", "last.safetensors", *(f"step_{n:06d}.safetensors" for n in (4, 8, 12))]
    for name in names:
        assert (tmp_path / "goes on" / name).read_bytes() == (tmp_path / "waits" / name).read_bytes(), name

    def checkpoints(records):
        return [(record.name, record.step) for record in records_of(CheckpointRecord, records)]

    assert checkpoints(records) == checkpoints(expected)
    others = [[type(r) for r in each if not isinstance(r, CheckpointRecord)] for each in (records, expected)]
    assert others[0] == others[1]


def test_training_goes_on_while_a_thread_writes(background, tmp_path, monkeypatch):
    disk = SlowDisk(monkeypatch)
    steps_at_write = []
    train_step = step_module.train_step

    def step(state, *args):
        train_step(state, *args)
        if state.step == 9:  # after the one of step 8 began
            steps_at_write.append(state.step)
            disk.may_write.set()

    monkeypatch.setattr(loop, "train_step", step)
    config = CONFIG.replace({"log_interval": 100, "eval_interval": 100, "keep_every": 8})
    state = init_state(config, TOKENIZER)
    for record in loop.train_loop(state, TRAIN, VAL, out_dir=tmp_path):
        if isinstance(record, CheckpointRecord):
            assert read_checkpoint(tmp_path / f"{record.name}.safetensors").metadata.step == record.step
    assert steps_at_write == [9]
    assert threading.main_thread() not in disk.threads


def test_an_evaluation_waits_for_the_files_of_earlier_steps_and_step_records_do_not(background, tmp_path, monkeypatch):
    disk = SlowDisk(monkeypatch)
    config = CONFIG.replace({"log_interval": 1})  # the first checkpoint is at step 4, the first evaluation at 5
    records = loop.train_loop(init_state(config, TOKENIZER), TRAIN, VAL, out_dir=tmp_path)
    taken = list(itertools.islice(records, 1 + 5))
    assert [record.step for record in records_of(StepRecord, taken)] == [1, 2, 3, 4, 5]
    threading.Timer(0.2, disk.may_write.set).start()
    following = list(itertools.islice(records, 2))
    assert [(type(record), record.step) for record in following] == [(CheckpointRecord, 4), (EvalRecord, 5)]
    records.close()


def test_an_error_comes_out_at_the_next_record_and_leaves_the_file_before(background, tmp_path, monkeypatch):
    disk = SlowDisk(monkeypatch)
    disk.may_write.set()
    records = loop.train_loop(init_state(CONFIG, TOKENIZER), TRAIN, VAL, out_dir=tmp_path)
    for record in records:
        if isinstance(record, CheckpointRecord) and record.name == "last":
            break
    before = (tmp_path / "last.safetensors").read_bytes()
    disk.full_for = {"last", "best", "step_000008"}
    with pytest.raises(OSError, match="No space left"):
        list(records)
    assert (tmp_path / "last.safetensors").read_bytes() == before
    assert not list(tmp_path.glob("*.tmp*"))


def test_nothing_is_written_after_a_file_that_cannot_be(background, tmp_path, monkeypatch):
    """Else `last` would name a best step whose file is missing."""
    disk = SlowDisk(monkeypatch)
    disk.may_write.set()
    records = loop.train_loop(init_state(CONFIG, TOKENIZER), TRAIN, VAL, out_dir=tmp_path)
    next(record for record in records if isinstance(record, CheckpointRecord) and record.name == "last")  # of step 5
    disk.full_for = {"best"}
    later = []
    with pytest.raises(OSError, match="No space left"):
        later.extend(records)
    assert [record.name for record in records_of(CheckpointRecord, later)] == ["step_000008"]
    saved = {name: read_checkpoint(tmp_path / f"{name}.safetensors").metadata for name in ("best", "last")}
    assert {name: (metadata.step, metadata.best_step) for name, metadata in saved.items()} == {
        "best": (5, 5),
        "last": (5, 5),
    }


def test_what_is_written_has_its_records_before_an_error(background, tmp_path, monkeypatch):
    """The loss is not finite while a thread writes the checkpoints of an evaluation."""
    disk = SlowDisk(monkeypatch)
    train_step = step_module.train_step

    def step(state, *args):
        train_step(state, *args)
        if state.step == 6:
            state.since_log.total.fill_(math.nan)
            threading.Timer(0.2, disk.may_write.set).start()

    monkeypatch.setattr(loop, "train_step", step)
    state = init_state(CONFIG.replace({"keep_every": 0}), TOKENIZER)
    records = loop.train_loop(state, TRAIN, VAL, out_dir=tmp_path)
    taken = []
    with pytest.raises(ExternalError, match="not finite by step 6"):
        taken.extend(records)
    assert [(record.name, record.step) for record in records_of(CheckpointRecord, taken)] == [("best", 5), ("last", 5)]


@pytest.mark.parametrize("fails", [False, True])
def test_leaving_the_loop_waits_for_the_files(background, fails, tmp_path, monkeypatch):
    """The first file of step 4 has its record; that of step 8 is being written when the caller leaves."""
    disk = SlowDisk(monkeypatch)
    disk.may_write.set()
    records = loop.train_loop(init_state(CONFIG, TOKENIZER), TRAIN, VAL, out_dir=tmp_path)
    for record in records:
        if isinstance(record, StepRecord) and record.step == 6:
            break
    disk.may_write.clear()
    train_step = step_module.train_step

    def step(state, *args):
        train_step(state, *args)
        if state.step == 9:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "train_step", step)
    disk.full_for = {"step_000008"} if fails else set()
    threading.Timer(0.2, disk.may_write.set).start()
    with pytest.raises(KeyboardInterrupt):  # not the error of the disk
        list(records)
    assert (tmp_path / "step_000008.safetensors").exists() != fails


def test_everything_is_written_when_training_is_done(background, tmp_path, monkeypatch):
    _, records = train(tmp_path, CONFIG)
    assert isinstance(records[-1], DoneRecord)
    assert isinstance(records[-2], CheckpointRecord)


@pytest.mark.parametrize(
    ("device", "world_size", "expected"), [("cuda", 1, True), ("cuda", 2, False), ("cpu", 1, False), ("mps", 1, False)]
)
def test_a_thread_writes_with_one_gpu_alone(device, world_size, expected):
    state = init_state(CONFIG, TOKENIZER)
    state.device, state.group = torch.device(device), ProcessGroup(world_size=world_size)
    assert checkpoint_writer.writes_in_background(state) == expected
