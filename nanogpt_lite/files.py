"""Atomic file writing, file locks, and JSON in one canonical form.

What the files contain is not known here: see `checkpoint`, `data`, `runs` and `tracking`.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NO_LOCKS_ERRNOS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # the file system has no locks
REPLACE_TIMEOUT = 10.0  # seconds, on Windows; loading a checkpoint takes less
LOCK_TIMEOUT = 0.1  # seconds; a lock that is being released, or a file that a virus scanner looks at, is free by then
RESERVED_NAMES = {  # of devices, on Windows, also with a suffix
    *("CON", "PRN", "AUX", "NUL"),
    *(f"{port}{number}" for port in ("COM", "LPT") for number in range(10)),
}
DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)  # disk full, file size limit, quota exceeded


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Write a file atomically: yields a temporary path beside `path`, to write to.

    On success the temporary file is flushed to disk and renamed to `path`; on an error it is removed. A reader sees
    the old file or the new one, never a part, also after a power failure. `OSError` (disk full, read-only folder)
    leaves the old file unchanged. Windows does not replace a file that a program has open: `PermissionError`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    lock_path = _lock_path(temporary)
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        with lock(lock_path):  # so that `remove_temp_files` in another process leaves it alone
            yield temporary
            temporary.chmod(mode)  # some writers create a file that only its owner can read
            sync_to_disk(temporary)
            _replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        unnamed = isinstance(error, OSError) and error.filename is None and error.errno in DISK_FULL_ERRNOS
        ours = (str(temporary), temporary, str(lock_path))
        if isinstance(error, OSError) and (unnamed or error.filename in ours):
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
def lock(lock_path: Path, timeout: float = LOCK_TIMEOUT) -> Iterator[None]:
    """Hold an exclusive lock during the `with` block. `BlockingIOError` if another process, or another block, holds it.

    `lock_path` is a file of its own, which exists while the lock is held. What it stands for is up to the caller. The
    operating system releases the lock when the process ends, also when it is killed; the file that stays then is no
    lock. A file system without locks locks nothing.
    """
    from filelock import FileLock, Timeout  # on the first use: commands that write nothing start without it

    # thread_local: a generator that holds the lock may be closed by another thread. fallback_to_soft: a file that is a
    # lock because it exists would outlive a killed process.
    held = FileLock(lock_path, timeout=timeout, thread_local=False, fallback_to_soft=False)
    try:
        held.acquire()
    except Timeout:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), str(lock_path)) from None
    except OSError as error:
        if error.errno not in NO_LOCKS_ERRNOS:
            raise
    try:
        yield
    finally:
        # Removed while it is locked: filelock refuses a lock on a file that has no name any more, so no two processes
        # hold one. Windows cannot remove an open file; there `release` does it.
        with contextlib.suppress(OSError):
            lock_path.unlink()
        held.release()


def is_locked(lock_path: Path) -> bool:
    """Whether a process holds the lock now. It is held for a moment to find out; who waits for it gets it then."""
    if not lock_path.exists():
        return False
    try:
        with lock(lock_path, timeout=0.0):
            return False
    except BlockingIOError:
        return True
    except OSError:  # such as a folder that may not be written to
        return False


def sync_to_disk(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on disk (fsync). Windows flushes no folders."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        if sys.platform == "darwin":  # its fsync leaves the data in the cache of the drive, see fsync(2) there
            import fcntl

            with contextlib.suppress(OSError):  # not every file system has it
                fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
                return
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temp_files(folder: Path, *names: str) -> None:
    """Remove the temporary files that killed processes left in `folder`, for files of these names (or patterns)."""
    for name in names:
        left = {path.with_suffix("") for path in folder.glob(f".{name}.*.tmp.lock")} | {*folder.glob(f".{name}.*.tmp")}
        for path in left:
            with contextlib.suppress(OSError), lock(_lock_path(path)):  # another process writes it, or has removed it
                path.unlink(missing_ok=True)


def safe_name(name: str, default: str) -> str:
    """A file name that every system accepts: letters, digits, '_', '.' and '-'. `default` if nothing of `name` remains.

    Windows reserves the names of devices, such as aux.txt, and drops a dot at the end.
    """
    safe = re.sub(r"[^\w.-]+", "_", name).strip("._") or default
    return f"{safe}_" if safe.split(".")[0].upper() in RESERVED_NAMES else safe


def _replace(temporary: Path, path: Path) -> None:
    """Rename `temporary` to `path`. Windows refuses while a program reads `path`: wait until it has closed the file."""
    deadline = time.monotonic() + REPLACE_TIMEOUT
    while True:
        try:
            temporary.replace(path)
            return
        except PermissionError:
            if sys.platform != "win32" or time.monotonic() > deadline:
                raise
        time.sleep(0.05)  # the system tells nobody when the file is closed, so it is asked again


def _lock_path(temporary: Path) -> Path:
    """The lock of a temporary file: a file beside it, since other programs may replace the temporary file itself."""
    return temporary.with_name(f"{temporary.name}.lock")


def json_sha256(value: object) -> str:
    """The SHA-256 of a value's canonical JSON, in hexadecimal."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def canonical_json(value: object) -> str:
    """JSON with one text for each value: sorted keys, no spaces, ASCII, floats with all their digits.

    >>> canonical_json({"step": 3, "loss": 0.1, "best_step": None})
    '{"best_step":null,"loss":0.1,"step":3}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def read_json(path: Path) -> Any:
    """The content of a JSON file; None if there is none, or if it is not JSON. `OSError` if it is unreadable."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, RecursionError):
        return None


def write_json(path: Path, value: object) -> None:
    """Write an indented JSON file atomically."""
    with atomic_write(path) as temporary:
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        # A file name in another encoding has characters that UTF-8 cannot encode. They become \udcXX, which JSON reads.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
