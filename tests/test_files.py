"""Atomic writing, locks, temporary files and canonical JSON."""

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from subprocess import PIPE

import filelock
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_lite import files

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def disk_error(path: Path) -> None:
    raise OSError(28, "No space left on device")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_atomic_write_replaces_the_file_at_the_end(tmp_path):
    path = tmp_path / "new" / "folder" / "file"
    for content in ("first", "second"):
        before = path.read_text() if path.exists() else None
        with files.atomic_write(path) as temporary:
            temporary.write_text(content)
            assert temporary.parent == path.parent  # a rename is atomic only within one file system
            assert (path.read_text() if path.exists() else None) == before
        assert path.read_text() == content
        assert names(path.parent) == ["file"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("old", [None, "old"])
@pytest.mark.parametrize("is_partly_written", [False, True])
def test_exception_keeps_the_old_file_and_removes_the_temporary_one(tmp_path, error, old, is_partly_written):
    path = tmp_path / "file"
    if old:
        path.write_text(old)

    def write() -> None:
        with files.atomic_write(path) as temporary:
            if is_partly_written:
                temporary.write_text("part of it")
            raise error

    with pytest.raises(error):
        write()
    assert names(tmp_path) == (["file"] if old else [])
    assert not old or path.read_text() == old


def test_full_disk_keeps_the_old_file_and_removes_the_temporary_one(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr(files, "sync_to_disk", disk_error)
    with pytest.raises(OSError, match="No space left"):
        with files.atomic_write(path) as temporary:
            temporary.write_text("new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


@pytest.mark.posix("flushes a folder, which Windows cannot")
def test_content_is_flushed_before_the_rename(tmp_path, monkeypatch):
    """In this order a power failure leaves the old file or the new one."""
    order = []
    fsync, replace = os.fsync, Path.replace
    path = tmp_path / "file"
    path.write_text("old")

    def spy_fsync(handle: int) -> None:
        order.append(("flush", os.fstat(handle).st_ino))
        fsync(handle)

    def spy_replace(self: Path, target: Path) -> Path:
        order.append(("rename", self.stat().st_ino))
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(Path, "replace", spy_replace)
    with files.atomic_write(path) as temporary:
        temporary.write_text("new")
    new, folder = path.stat().st_ino, tmp_path.stat().st_ino
    assert order == [("flush", new), ("rename", new), ("flush", folder)]


@pytest.mark.posix("Windows has one permission, read-only")
def test_written_file_has_the_permissions_of_any_new_file(tmp_path):
    """Also when the writer makes the file private, or replaces it."""
    (tmp_path / "plain").touch()
    for number, replaced in enumerate((False, True)):
        with files.atomic_write(tmp_path / str(number)) as temporary:
            if replaced:
                temporary.unlink()
            temporary.touch()
            temporary.chmod(0o600)
        assert (tmp_path / str(number)).stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_only_unlocked_temporary_files_of_the_named_files_are_removed(tmp_path):
    (tmp_path / "kept.tmp").touch()
    (tmp_path / ".hidden").touch()
    (tmp_path / ".notes.1.tmp").touch()
    for name in ("last.safetensors", "step_000010.safetensors", "config.json"):
        (tmp_path / f".{name}.123.tmp").touch()
    with files.atomic_write(tmp_path / "best.safetensors") as written:
        files.remove_temp_files(tmp_path, "*.safetensors", "config.json")
        assert names(tmp_path) == [written.name, f"{written.name}.lock", ".hidden", ".notes.1.tmp", "kept.tmp"]
    assert names(tmp_path) == [".hidden", ".notes.1.tmp", "best.safetensors", "kept.tmp"]


def test_os_error_keeps_its_message_and_names_the_final_file(tmp_path):
    for error, message in [
        (OSError("the reason"), "the reason"),
        (OSError(5, "broken"), "[Errno 5] broken"),
        (OSError(28, "full"), f"[Errno 28] full: '{tmp_path / 'a'}'"),
        (OSError(28, "full", "another"), "[Errno 28] full: 'another'"),
    ]:
        with pytest.raises(OSError, match=".") as caught, files.atomic_write(tmp_path / "a"):
            raise error
        assert str(caught.value) == message
    with pytest.raises(OSError, match=".") as caught, files.atomic_write(tmp_path / "a") as temporary:
        raise OSError(28, "full", str(temporary))
    assert str(caught.value) == f"[Errno 28] full: '{tmp_path / 'a'}'"


def with_reversed_keys(value):
    """The same value with every dict in the opposite order."""
    if isinstance(value, dict):
        return {key: with_reversed_keys(value[key]) for key in reversed(value)}
    return [with_reversed_keys(one) for one in value] if isinstance(value, list) else value


@settings(deadline=None)
@given(JSON)
def test_canonical_json_does_not_depend_on_the_order_of_keys(value):
    text = files.canonical_json(value)
    assert json.loads(text) == value
    assert text == files.canonical_json(with_reversed_keys(value))
    assert text.isascii()
    assert "\n" not in text


def test_canonical_json_has_sorted_keys_and_no_spaces():
    assert files.canonical_json({"b": [1, 0.1], "a": {"é": None}}) == r'{"a":{"\u00e9":null},"b":[1,0.1]}'


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_canonical_json_refuses_nan_and_infinity(value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.canonical_json({"loss": [value]})


@pytest.mark.parametrize("value", [{"source": "Müller – 源"}, {"name": os.fsdecode(b"caf\xe9.txt")}, []])
def test_write_json_round_trip(tmp_path, value):
    path = tmp_path / "a.json"
    files.write_json(path, value)
    assert json.loads(path.read_text(encoding="utf-8")) == value


def test_set_of_files_is_replaced_completely_or_not_at_all(tmp_path):
    paths = [tmp_path / name for name in ("main", "second", "third")]
    for content in ("old", "new"):
        with files.atomic_write_set(*paths) as temporaries:
            for temporary in temporaries:
                temporary.write_text(content)
    assert [path.read_text() for path in paths] == ["new"] * 3
    with pytest.raises(OSError, match="No space"), files.atomic_write_set(*paths) as temporaries:
        temporaries[0].write_text("newer")
        disk_error(temporaries[1])
    assert [path.read_text() for path in paths] == ["new"] * 3
    assert names(tmp_path) == ["main", "second", "third"]


def test_main_file_is_absent_while_a_set_is_replaced(tmp_path, monkeypatch):
    paths = [tmp_path / name for name in ("main", "other")]
    rename, renamed = Path.replace, []

    def spy_rename(self, target):
        renamed.append((target.name, paths[0].exists()))
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", spy_rename)
    for _ in range(2):
        with files.atomic_write_set(*paths):
            pass
    assert renamed == [("other", False), ("main", False)] * 2


def test_lock_is_held_by_one_block_at_a_time_and_leaves_no_file(tmp_path):
    path = tmp_path / ".lock"
    for _ in range(2):
        with files.lock(path):
            assert path.exists()
            with pytest.raises(BlockingIOError), files.lock(path):
                pass
            assert path.exists()
        assert names(tmp_path) == []


def test_lock_is_held_against_other_processes_until_they_end_also_if_they_are_killed(tmp_path):
    code = f"""
import sys
from pathlib import Path
from nanogpt_lite import files
with files.lock(Path({str(tmp_path)!r}, ".lock")):
    print("locked", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=PIPE, stdout=PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(BlockingIOError), files.lock(tmp_path / ".lock"):
            pass
        process.kill()
    assert names(tmp_path) == [".lock"]
    with files.lock(tmp_path / ".lock"):
        pass
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_file_system_without_locks_locks_nothing(tmp_path, monkeypatch, number):
    def refuse(self, *arguments, **options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with files.lock(tmp_path / ".lock"), files.lock(tmp_path / ".lock"):
        pass


@pytest.mark.parametrize("function", ["sync_to_disk", "_replace"])
def test_temporary_file_is_not_removed_by_others_until_it_has_its_name(tmp_path, monkeypatch, function):
    original = getattr(files, function)

    def clean_up_and_continue(path, *arguments):
        files.remove_temp_files(tmp_path, "a")
        original(path, *arguments)

    monkeypatch.setattr(files, function, clean_up_and_continue)
    with files.atomic_write(tmp_path / "a") as temporary:
        temporary.write_bytes(b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert names(tmp_path) == ["a"]


def test_lock_that_a_generator_holds_is_released_when_another_thread_closes_it(tmp_path, monkeypatch):
    def deny(self, **options):
        raise PermissionError  # Windows removes no open file: so the lock itself has to be released

    acquired = []  # keeps the locks: Python releases one that is no longer referred to
    original = filelock.FileLock
    monkeypatch.setattr(Path, "unlink", deny)
    monkeypatch.setattr(
        filelock, "FileLock", lambda *args, **options: acquired.append(original(*args, **options)) or acquired[-1]
    )

    def hold():
        with files.lock(tmp_path / ".lock"):
            yield

    generator = hold()
    started = threading.Thread(target=lambda: next(generator))
    started.start()
    started.join()
    with pytest.raises(BlockingIOError), files.lock(tmp_path / ".lock"):
        pass
    generator.close()
    with files.lock(tmp_path / ".lock"):
        assert names(tmp_path) == [".lock"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 50_000, None])
def test_file_that_is_not_json_is_read_as_none(tmp_path, content):
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    assert files.read_json(tmp_path / "a.json") is None
    (tmp_path / "folder").mkdir()
    assert files.read_json(tmp_path / "folder") is None
    (tmp_path / "b.json").write_text('{"a": "\u00e9"}', encoding="utf-8")
    assert files.read_json(tmp_path / "b.json") == {"a": "\u00e9"}
