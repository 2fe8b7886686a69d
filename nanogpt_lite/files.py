"""Files that appear whole or not at all, and JSON in one canonical form.

What the files mean is the business of `datasets`, `checkpoint`, `logs` and `plots`.
"""

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)  # what a system says when there is no room for a file


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to. On success it is flushed to disk and renamed, on an error removed.

    A reader sees the old file or the new one, never half, also after a power cut. `OSError` (disk full,
    read-only folder) leaves the old file as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        with lock(temporary):  # so that nobody takes it for a leftover
            yield temporary
        temporary.chmod(mode)  # some writers make a file that only its owner can read
        sync_to_disk(temporary)
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        unnamed = isinstance(error, OSError) and error.filename is None and error.errno in DISK_FULL_ERRNOS
        if isinstance(error, OSError) and (unnamed or error.filename in (str(temporary), temporary)):
            raise OSError(error.errno, error.strerror, str(path)) from error  # the file that people know
        raise
    with contextlib.suppress(OSError):  # some systems cannot flush a folder; the file itself is safe
        sync_to_disk(path.parent)


@contextlib.contextmanager
def atomic_set(main: Path, *others: Path) -> Iterator[list[Path]]:
    """Paths beside these to write to, for files that belong together: on an error all stay as they were.

    Who reads the others looks at `main` first: it goes before they are replaced, and comes last.
    """
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(atomic(path)) for path in (main, *others)]
        main.unlink(missing_ok=True)


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold a folder or file for as long as the `with` block takes. `BlockingIOError` if another block holds it.

    The system lets go of it when a process ends, however that happens. Where it cannot lock folders (Windows, some
    network drives), everybody gets it.
    """
    if os.name == "nt":
        yield
        return
    import fcntl

    handle = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            pass  # a drive without locks
        yield
    finally:
        os.close(handle)


def sync_to_disk(path: Path) -> None:
    """Wait until what was written to a file (or the names in a folder) is on disk."""
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_leftovers(folder: Path, *names: str) -> None:
    """Remove the temporary files of those names that killed programs left in a folder."""
    for name in names:
        for path in folder.glob(f".{name}.*.tmp"):
            with contextlib.suppress(OSError), lock(path):  # somebody writes it, or has removed it
                path.unlink()


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces, ASCII; numbers keep all their digits."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file for people to read, atomically."""
    with atomic(path) as temporary:
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        # what UTF-8 cannot hold, from a file name in another encoding, becomes \udcXX, which JSON reads back
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
