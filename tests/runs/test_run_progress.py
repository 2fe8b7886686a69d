"""How far a run is: the records that are new, the state of a run, and the steps of its checkpoints."""

import json
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE

import pytest
from example_records import START, done_record, eval_record, step_record
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_lite import files
from nanogpt_lite.runs import run_progress
from nanogpt_lite.runs.run_files import LOCK_FILE, lock_run
from nanogpt_lite.runs.run_folder import Run
from nanogpt_lite.runs.run_progress import RunState, checkpoint_steps, is_training, read_more, run_state
from nanogpt_lite.tracking.metrics_file import MetricsFile, read_metrics
from nanogpt_lite.tracking.records import CheckpointRecord, SampleRecord

DAMAGED = ["", "x", "-", "-1-2", "5-", "-5", "5", "5-5", "9" * 40, "9" * 40 + "-1", "9" * 5000, "٣-1", "²-1", "1_0-1",
           "+5-1", " 5-1", "5.0-1", "0-0", "0x5-1", "\0", "5-\ud800"]  # fmt: skip


@pytest.fixture
def metrics(tmp_path):
    """A metrics file with records of steps 0 to 5, and its path."""
    path = tmp_path / "metrics.jsonl"
    append(path, START, *map(step_record, range(1, 6)))
    return path


def append(path: Path, *records, keep_until: int = 10**9) -> None:
    sink = MetricsFile(path, keep_until=keep_until)
    for record in records:
        sink.write(record)
    sink.close()


@contextmanager
def locking_process(path: Path):
    """A process that holds a lock, and is killed at the end."""
    code = f"""
import sys
from pathlib import Path
from nanogpt_lite import files
with files.lock(Path({str(path)!r})):
    print("locked", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=PIPE, stdout=PIPE, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "locked\n"
            yield
        finally:
            process.kill()


def test_without_a_file_there_is_nothing_and_later_all_of_it(tmp_path):
    path = tmp_path / "metrics.jsonl"
    nothing = read_more(path)
    assert (nothing.records, nothing.is_whole) == ([], True)
    append(path, START)
    assert read_more(path, nothing.cursor).records == read_metrics(path) == [START.to_json()]


def test_only_what_was_added_comes_after_a_cursor(metrics):
    first = read_more(metrics)
    assert (first.records, first.is_whole) == (read_metrics(metrics), True)
    same = read_more(metrics, first.cursor)
    assert (same.records, same.cursor, same.is_whole) == ([], first.cursor, False)
    append(metrics, step_record(6), eval_record(6))
    new = read_more(metrics, first.cursor)
    assert (new.records, new.is_whole) == ([step_record(6).to_json(), eval_record(6).to_json()], False)
    assert new.cursor != first.cursor
    assert read_more(metrics, new.cursor).records == []
    assert read_more(metrics, first.cursor) == new


def test_a_line_that_is_being_written_comes_when_it_is_complete(metrics):
    first = read_more(metrics)
    line = json.dumps(step_record(6).to_json()).encode() + b"\n"
    for part in range(1, len(line)):
        with metrics.open("ab") as file:
            file.write(line[part - 1 : part])
        assert read_more(metrics, first.cursor) == run_progress.NewRecords([], first.cursor, is_whole=False)
        assert read_more(metrics) == first
    with metrics.open("ab") as file:
        file.write(line[-1:])
    assert read_more(metrics, first.cursor).records == [step_record(6).to_json()]


@pytest.mark.parametrize("keep_until", [-1, 0, 3])
@pytest.mark.parametrize("num_steps", [0, 1, 2, 3, 9])
def test_a_file_that_a_resume_wrote_anew_is_given_as_a_whole(metrics, keep_until, num_steps):
    """Also if it has grown to its old length, or beyond."""
    first = read_more(metrics)
    append(metrics, *(step_record(100 + number) for number in range(num_steps)), keep_until=keep_until)
    new = read_more(metrics, first.cursor)
    assert new.is_whole
    assert new.records == read_metrics(metrics)
    assert [r["step"] for r in new.records if r["step"] >= 100] == [100 + number for number in range(num_steps)]
    assert read_more(metrics, new.cursor).records == []


def test_a_resume_that_drops_nothing_before_the_cursor_goes_on_there(metrics):
    first = read_more(metrics)
    append(metrics, step_record(6), step_record(7))
    append(metrics, step_record(8), keep_until=6)
    new = read_more(metrics, first.cursor)
    assert (new.is_whole, [record["step"] for record in new.records]) == (False, [6, 8])


def test_a_file_of_the_same_length_with_another_end_is_another_file(metrics):
    first = read_more(metrics)
    content = metrics.read_bytes()
    metrics.write_bytes(content.replace(b'"step": 5', b'"step": 6'))
    assert len(metrics.read_bytes()) == len(content)
    assert read_more(metrics, first.cursor).is_whole


@pytest.mark.parametrize("cursor", DAMAGED, ids=lambda cursor: ascii(cursor)[:12])
def test_a_damaged_cursor_gives_the_whole_file(metrics, cursor):
    assert read_more(metrics, cursor) == read_more(metrics)
    assert read_more(metrics, cursor).is_whole


@pytest.mark.parametrize("change", ["{}0", "0{}", "{} ", "+{}", "{}-", "{}-1"])
def test_a_cursor_that_is_not_as_it_was_given_gives_the_whole_file(metrics, change):
    cursor = read_more(metrics).cursor
    assert not read_more(metrics, cursor).is_whole
    assert read_more(metrics, change.format(cursor)).is_whole


def test_a_cursor_with_the_digits_of_another_script_gives_the_whole_file(metrics):
    """int() would read them."""
    digits = str.maketrans("0123456789", "٠١٢٣٤٥٦٧٨٩")
    position, _, checksum = read_more(metrics).cursor.partition("-")
    for cursor in (f"{position.translate(digits)}-{checksum}", f"{position}-{checksum.translate(digits)}"):
        assert read_more(metrics, cursor).is_whole


def test_a_cursor_may_be_after_any_line_and_is_compared_with_what_is_before_it(metrics):
    content = metrics.read_bytes()
    lines = content.splitlines(keepends=True)
    assert len(lines) == 6
    for number in range(1, 7):
        metrics.write_bytes(b"".join(lines[:number]))
        cursor = read_more(metrics).cursor
        metrics.write_bytes(content)
        new = read_more(metrics, cursor)
        assert (new.records, new.is_whole) == (read_metrics(metrics)[number:], False)
        end = len(b"".join(lines[:number]))
        metrics.write_bytes(content[: end - 2] + b" }" + content[end:])  # one byte before the cursor
        assert read_more(metrics, cursor).is_whole


LINES = st.one_of(
    st.integers(0, 10**6).map(lambda step: json.dumps(step_record(step).to_json()).encode()),
    st.text(max_size=300).map(lambda text: json.dumps(SampleRecord(step=1, text=text).to_json()).encode()),
    st.binary(max_size=40).map(lambda content: content.replace(b"\n", b"")),  # damaged: no record
    st.just(b""),
)


@given(lines=st.lists(LINES, max_size=8), data=st.data())
def test_the_parts_are_together_the_file_wherever_it_was_read(lines, data):
    content = b"".join(line + b"\n" for line in lines)
    splits = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=6)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        records, cursor = [], ""
        for start, end in zip([0, *splits], [*splits, len(content)], strict=True):
            with path.open("ab") as file:
                file.write(content[start:end])
            new = read_more(path, cursor)
            had_lines = b"\n" in content[:start]
            assert new.is_whole == (not had_lines)
            records, cursor = records + new.records, new.cursor
        assert records == read_metrics(path)


@given(cursor=st.text(max_size=30) | st.from_regex(r"\A[0-9]{1,4}-[0-9]{1,10}\Z"))
def test_any_text_is_a_cursor_and_gives_the_whole_file(cursor):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        append(path, START, step_record(1))
        assert read_more(path, cursor) == read_more(path)


DONE = done_record(5).to_json()


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([START.to_json(), DONE], RunState.FINISHED),
        ([DONE], RunState.FINISHED),
        ([done_record(5, reason="patience").to_json()], RunState.FINISHED),
        ([{"kind": "done", "step": 5}], RunState.FINISHED),
        ([done_record(5, reason="interrupted").to_json()], RunState.INTERRUPTED),
        ([DONE, START.to_json(), done_record(5, reason="interrupted").to_json()], RunState.INTERRUPTED),
        ([done_record(5, reason="interrupted").to_json(), START.to_json(), DONE], RunState.FINISHED),
        ([START.to_json()], RunState.UNFINISHED),
        ([DONE, START.to_json(), step_record(6).to_json()], RunState.UNFINISHED),
        ([], RunState.UNFINISHED),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(record["kind"] for record in value),
)
def test_the_last_record_says_what_became_of_a_run_that_no_process_trains(records, expected):
    assert run_state(records, was_training=False) is expected


@pytest.mark.parametrize("records", [[], [START.to_json()], [DONE]])
def test_a_run_that_was_trained_before_its_records_were_read_is_trained(records):
    assert run_state(records, was_training=True) is RunState.TRAINING


def test_a_run_is_trained_while_its_folder_is_locked(tmp_path):
    run = Run(tmp_path)
    assert not is_training(run)
    with lock_run(tmp_path):
        assert is_training(run)
        assert is_training(run)
    assert not is_training(run)
    assert not is_training(Run(tmp_path / "no folder"))


def test_a_run_is_trained_until_its_process_is_killed(tmp_path):
    run = Run(tmp_path)
    with locking_process(tmp_path / LOCK_FILE):
        assert is_training(run)
        with pytest.raises(BlockingIOError), files.lock(tmp_path / LOCK_FILE):  # asking has not released it
            pass
    assert (tmp_path / LOCK_FILE).exists()
    assert not is_training(run)


def test_several_threads_that_look_at_a_killed_run_do_not_take_each_other_for_a_training(tmp_path, monkeypatch):
    """Each holds the lock for a moment, which lasts longer here."""
    lock, num_threads = files.lock, 4
    begin = threading.Barrier(num_threads)

    @contextmanager
    def lock_longer(path, *arguments, **options):
        with lock(path, *arguments, **options):
            threading.Event().wait(0.02)
            yield
        path.touch()  # so that the next one finds what a killed process leaves

    def look(_):
        begin.wait(timeout=60)
        return is_training(Run(tmp_path))

    monkeypatch.setattr(files, "lock", lock_longer)
    (tmp_path / LOCK_FILE).touch()
    with ThreadPoolExecutor(num_threads) as pool:
        assert list(pool.map(look, range(num_threads))) == [False] * num_threads


def test_a_lock_is_held_only_while_a_process_holds_it(tmp_path):
    path = tmp_path / ".lock"
    assert not files.is_locked(path)
    assert not files.is_locked(tmp_path / "no folder" / ".lock")
    assert list(tmp_path.iterdir()) == []
    with files.lock(path):
        assert files.is_locked(path)
        assert files.is_locked(path)
    assert not files.is_locked(path)
    path.touch()  # as a killed process leaves it
    assert not files.is_locked(path)
    with files.lock(path):
        assert files.is_locked(path)


def test_a_training_starts_while_its_state_is_asked_for(tmp_path, monkeypatch):
    """Whoever asks holds the lock for a moment; a training waits for it."""
    path, lock = tmp_path / LOCK_FILE, files.lock
    path.touch()
    asked = []

    def lock_later(lock_path, *arguments, **options):
        asked.append(options or arguments)
        return lock(lock_path, *arguments, **options)

    monkeypatch.setattr(files, "lock", lock_later)
    assert not files.is_locked(path)
    assert asked == [{"timeout": 0.0}], "who asks does not wait"
    with lock_run(tmp_path):
        assert asked[1] == ()
    assert files.LOCK_TIMEOUT > 0


def test_a_folder_that_cannot_be_locked_is_not_locked(tmp_path, monkeypatch):
    import filelock

    path = tmp_path / ".lock"
    path.touch()

    def refuse(self, *arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    assert not files.is_locked(path)


def test_steps_of_checkpoints_are_those_of_their_newest_files():
    names = [("early_000005", 5), ("best", 10), ("last", 10), ("step_000010", 10), ("last", 20)]
    records = [CheckpointRecord(step=step, name=name, path="").to_json() for name, step in names]
    assert checkpoint_steps([START.to_json(), *records, DONE]) == {
        "early_000005": 5,
        "best": 10,
        "last": 20,
        "step_000010": 10,
    }
    assert checkpoint_steps([]) == {}
