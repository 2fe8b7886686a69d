"""Atomic file writing, file locks, and JSON in one canonical form.

What the files contain is not known here: see `checkpoint`, `data`, `runs` and `tracking`.
"""

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)  # disk full, file size limit, quota exceeded


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Write a file atomically: yields a temporary path beside `path`, to write to.

    On success the temporary file is flushed to disk and renamed to `path`; on an error it is removed. A reader sees
    the old file or the new one, never a part, also after a power failure. `OSError` (disk full, read-only folder)
    leaves the old file unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        with lock(temporary):  # so that `remove_temp_files` in another process leaves it alone
            yield temporary
        temporary.chmod(mode)  # some writers create a file that only its owner can read
        sync_to_disk(temporary)
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        unnamed = isinstance(error, OSError) and error.filename is None and error.errno in DISK_FULL_ERRNOS
        if isinstance(error, OSError) and (unnamed or error.filename in (str(temporary), temporary)):
            raise OSError(error.errno, error.strerror, str(path)) from error  # the user knows `path` only
        raise
    with contextlib.suppress(OSError):  # some file systems cannot flush a folder; the file itself is on disk
        sync_to_disk(path.parent)


@contextlib.contextmanager
def atomic_write_set(main: Path, *others: Path) -> Iterator[list[Path]]:
    """Write files that belong together: yields one temporary path for each; on an error all files stay unchanged.

    `main` is removed before the others are replaced, and is written last. So a reader that opens `main` first never
    mixes old files with new ones.
    """
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(atomic_write(path)) for path in (main, *others)]
        main.unlink(missing_ok=True)


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file or folder during the `with` block. `BlockingIOError` if it is already locked.

    The operating system releases the lock when the process ends, also when it is killed. Where a folder cannot be
    locked (Windows, some network drives) nothing is locked.
    """
    if os.name == "nt":
        yield
        return
    import fcntl

    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(descriptor)


def sync_to_disk(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temp_files(folder: Path, *names: str) -> None:
    """Remove the temporary files that killed processes left in `folder`, for files of these names (or patterns)."""
    for name in names:
        for path in folder.glob(f".{name}.*.tmp"):
            with contextlib.suppress(OSError), lock(path):  # another process writes it, or has removed it
                path.unlink()


def canonical_json(value: object) -> str:
    """JSON with one text for each value: sorted keys, no spaces, ASCII, floats with all their digits.

    >>> canonical_json({"step": 3, "loss": 0.1, "best_step": None})
    '{"best_step":null,"loss":0.1,"step":3}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def write_json(path: Path, value: object) -> None:
    """Write an indented JSON file atomically."""
    with atomic_write(path) as temporary:
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        # A file name in another encoding has characters that UTF-8 cannot encode. They become \udcXX, which JSON reads.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
