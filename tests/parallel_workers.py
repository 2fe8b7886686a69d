"""The whole suite on several workers of pytest-xdist: tests that need all others wait for them.

The main process and its workers share a file, with a line for each test that has ended.
"""

import os
import tempfile
import time
from pathlib import Path

import pytest

VARIABLE = "NANOGPT_LITE_TEST_ENDS"  # the environment variable that gives workers the file
DEADLINE = 300  # seconds, for the tests that other workers have begun

if "PYTEST_XDIST_WORKER" in os.environ:
    # one thread for each worker and for the programs that it starts: more of them than cores would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def is_worker(config: pytest.Config) -> bool:
    """Whether this process is a worker."""
    return getattr(config, "workerinput", None) is not None


def start(config: pytest.Config) -> None:
    """Make the file, in the main process."""
    if not is_worker(config):
        handle, os.environ[VARIABLE] = tempfile.mkstemp(suffix=".txt")
        os.close(handle)


def note_end(test: str) -> None:
    """A test of a worker has ended."""
    with Path(os.environ[VARIABLE]).open("ab", buffering=0) as file:
        file.write(f"{test!r}\n".encode())


def wait_for_others(number: int) -> None:
    """Wait until `number` tests have ended on all workers together."""
    deadline = time.monotonic() + DEADLINE
    while len(Path(os.environ[VARIABLE]).read_bytes().splitlines()) < number:
        assert time.monotonic() < deadline, f"the other tests did not end within {DEADLINE} s"
        time.sleep(0.2)  # other workers send no event; the deadline decides, not this interval


def stop(config: pytest.Config) -> None:
    """Delete the file, in the main process."""
    if not is_worker(config):
        Path(os.environ.pop(VARIABLE)).unlink()
