"""The beginning of an app for Modal, which a test completes, and fixtures that run it on the local Modal."""

from pathlib import Path

import pytest
from local_modal import LocalModal

HEAD = """
import os, signal, sys, time
from pathlib import Path
import modal

MOUNT = os.environ.get("NANOGPT_MOUNT", "/data")
volume = modal.Volume.from_name("shared", create_if_missing=True, version=2)
app = modal.App("tiny")

def wait_for(path):
    deadline = time.monotonic() + 20
    while not Path(path).exists():
        assert time.monotonic() < deadline, f"{path} was not created"
        time.sleep(0.02)  # the interval of polling for a file of the test

def attempt(path):
    # the number of calls with this path so far: 1, 2, 3, ...
    with open(path, "a") as file:
        file.write(".")
    return Path(path).stat().st_size

def print_line(*words):
    # in one write: several containers print to the same stream at the same time
    sys.stdout.write(" ".join(map(str, words)) + "\\n")
"""


@pytest.fixture
def service(tmp_path):
    with LocalModal(tmp_path / "modal", secrets={"named": {"NAMED": "from the service"}}, grace=10) as service:
        yield service


@pytest.fixture
def write_app(tmp_path):
    def write(body: str) -> Path:
        path = tmp_path / "tiny.py"
        path.write_text(HEAD + body)
        return path

    return write


def stdout_of(done):
    """The output of a command that has to succeed."""
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
