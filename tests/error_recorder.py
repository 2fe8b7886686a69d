"""Notes every error of a user or of the world that is made while the tests run, in this process and in its ranks."""

import json
import os
import sys
import tempfile
from pathlib import Path

from nanogpt_lite import errors

NOTES = "NANOGPT_LITE_TEST_NOTES"  # names the file of the notes to the processes that are forked


def listen() -> None:
    """From now on note each error: module, line, message."""
    if NOTES not in os.environ:
        handle, os.environ[NOTES] = tempfile.mkstemp(suffix=".jsonl")
        os.close(handle)
    path = os.environ[NOTES]
    for kind in (errors.UserError, errors.ExternalError):

        def noting(error: Exception, *arguments: object, base: type[Exception] = kind.__base__) -> None:
            base.__init__(error, *arguments)
            frame = sys._getframe(1)
            note = [Path(frame.f_code.co_filename).name, frame.f_lineno, str(error)]
            with Path(path).open("ab", buffering=0) as file:
                file.write(json.dumps(note).encode() + b"\n")

        kind.__init__ = noting


def noted() -> list[tuple[str, int, str]]:
    """All notes so far."""
    return [tuple(json.loads(line)) for line in Path(os.environ[NOTES]).read_bytes().splitlines()]


def forget() -> None:
    """Delete the notes."""
    Path(os.environ.pop(NOTES)).unlink()
