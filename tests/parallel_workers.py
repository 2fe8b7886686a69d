"""The whole suite on several workers of pytest-xdist: tests that need all others wait for them.

The main process and its workers share a file, with a line for each test that has ended.
"""

import os
import tempfile
import time
from pathlib import Path

VARIABLE = "NANOGPT_LITE_TEST_ENDS"  # the environment variable that gives workers the file
DEADLINE = 300  # seconds, for the tests that other workers have begun


def is_worker() -> bool:
    """Whether this process is a worker."""
    return "PYTEST_XDIST_WORKER" in os.environ


def start() -> None:
    """Make the file, in the main process."""
    if not is_worker():
        handle, os.environ[VARIABLE] = tempfile.mkstemp(suffix=".txt")
        os.close(handle)


def note_end(test: str) -> None:
    """A test has ended."""
    if is_worker():
        with Path(os.environ[VARIABLE]).open("ab", buffering=0) as file:
            file.write(f"{test!r}\n".encode())


def wait_for_others(number: int) -> None:
    """Wait until `number` tests have ended on all workers together."""
    deadline = time.monotonic() + DEADLINE
    while is_worker() and len(Path(os.environ[VARIABLE]).read_bytes().splitlines()) < number:
        assert time.monotonic() < deadline, f"the other tests did not end within {DEADLINE} s"
        time.sleep(0.2)  # other workers send no event; the deadline decides, not this interval


def stop() -> None:
    """Delete the file, in the main process."""
    if not is_worker():
        Path(os.environ.pop(VARIABLE)).unlink()
