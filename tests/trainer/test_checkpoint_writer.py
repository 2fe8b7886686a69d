"""Checkpoints that a thread writes while training goes on: the same files, and a record for each that is complete."""

import itertools
import threading

import pytest
from tiny_training import TOKENIZER, TRAIN, VAL, records_of, small_config, train

from nanogpt_lite.checkpoint import checkpoint_file
from nanogpt_lite.checkpoint.checkpoint_file import read_checkpoint
from nanogpt_lite.tracking.records import CheckpointRecord, DoneRecord, EvalRecord, StepRecord
from nanogpt_lite.trainer import checkpoint_writer, loop
from nanogpt_lite.trainer import step as step_module
from nanogpt_lite.trainer.state import init_state

CONFIG = small_config(keep_every=4, max_iters=12, eval_interval=5, log_interval=3)


@pytest.fixture
def background(monkeypatch):
    """A thread writes, as with a GPU."""
    monkeypatch.setattr(checkpoint_writer, "writes_in_background", lambda state: True)


class SlowDisk:
    """Writes a checkpoint when it is let; after `fails` it has no space left."""

    def __init__(self, monkeypatch):
        self.write, self.may_write, self.threads, self.fails = (
            checkpoint_file.write_checkpoint,
            threading.Event(),
            [],
            False,
        )
        monkeypatch.setattr(checkpoint_file, "write_checkpoint", self)

    def __call__(self, path, tensors, metadata):
        self.threads.append(threading.current_thread())
        assert self.may_write.wait(20)
        if self.fails:
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


def test_a_record_waits_for_the_files_of_earlier_steps(background, tmp_path, monkeypatch):
    disk = SlowDisk(monkeypatch)
    records = loop.train_loop(init_state(CONFIG, TOKENIZER), TRAIN, VAL, out_dir=tmp_path)
    taken = list(itertools.takewhile(lambda record: not isinstance(record, StepRecord), records))  # step 3
    assert not records_of(CheckpointRecord, taken)
    threading.Timer(0.2, disk.may_write.set).start()
    following = list(itertools.islice(records, 2))
    assert [type(record) for record in following] == [CheckpointRecord, EvalRecord]
    assert following[0].step == 4
    records.close()


def test_an_error_comes_out_at_the_next_record_and_leaves_the_file_before(background, tmp_path, monkeypatch):
    disk = SlowDisk(monkeypatch)
    disk.may_write.set()
    records = loop.train_loop(init_state(CONFIG, TOKENIZER), TRAIN, VAL, out_dir=tmp_path)
    for record in records:
        if isinstance(record, CheckpointRecord) and record.name == "last":
            break
    before = (tmp_path / "last.safetensors").read_bytes()
    disk.fails = True
    with pytest.raises(OSError, match="No space left"):
        list(records)
    assert (tmp_path / "last.safetensors").read_bytes() == before
    assert not list(tmp_path.glob("*.tmp*"))


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
    disk.fails = fails
    threading.Timer(0.2, disk.may_write.set).start()
    with pytest.raises(KeyboardInterrupt):  # not the error of the disk
        next(records)
    assert (tmp_path / "step_000008.safetensors").exists() != fails


def test_everything_is_written_when_training_is_done(background, tmp_path, monkeypatch):
    _, records = train(tmp_path, CONFIG)
    assert isinstance(records[-1], DoneRecord)
    assert isinstance(records[-2], CheckpointRecord)


def test_a_cpu_and_several_ranks_do_not_use_a_thread():
    state = init_state(CONFIG, TOKENIZER)
    assert not checkpoint_writer.writes_in_background(state)
