"""Records every `UserError` and `ExternalError` that is created during the tests, also in the ranks they fork."""

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

from nanogpt_lite import errors

VARIABLE = "NANOGPT_LITE_TEST_ERRORS"  # the environment variable that gives forked ranks the file of the records


def start() -> None:
    """From now on record the module, the line and the message of each error."""
    if VARIABLE not in os.environ:
        handle, os.environ[VARIABLE] = tempfile.mkstemp(suffix=".jsonl")
        os.close(handle)
    for kind in (errors.UserError, errors.ExternalError):
        patch.object(kind, "__init__", _recording_init(kind, Path(os.environ[VARIABLE]))).start()


def recorded() -> list[tuple[str, int, str]]:
    """The errors so far: module file name, line, message."""
    return [tuple(json.loads(line)) for line in Path(os.environ[VARIABLE]).read_bytes().splitlines()]


def stop() -> None:
    """Delete the records. The process is about to end, so the classes stay patched."""
    Path(os.environ.pop(VARIABLE)).unlink()


def _recording_init(kind: type[Exception], path: Path) -> Callable[..., None]:
    original = vars(kind).get("__init__", Exception.__init__)

    def init(error: Exception, *arguments: object) -> None:
        original(error, *arguments)
        frame = sys._getframe(1)
        record = [Path(frame.f_code.co_filename).name, frame.f_lineno, str(error)]
        with path.open("ab", buffering=0) as file:
            file.write(json.dumps(record).encode() + b"\n")

    return init
