"""An application for tests, and a server as a process of its own."""

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nanogpt_lite as ng


@contextlib.contextmanager
def client_of(run, **options) -> Iterator:
    """A client of an application in this process; the application has started, and ends after it."""
    from starlette.testclient import TestClient

    app = ng.app(run, device="cpu", threads=1, **options)
    with TestClient(app, base_url="http://localhost:8000", raise_server_exceptions=False) as client:
        yield client


@contextlib.contextmanager
def server_process(out_dir: Path, *arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address of a server that answers on a free port, and its process, which is killed at the end."""
    command = [sys.executable, "-m", "nanogpt_lite", "serve", "--out_dir", str(out_dir), "--port", "0"]
    command += ["--device", "cpu", "--threads", "1", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        log = ""
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            address = re.search(r"http://\S+?:\d+", line)
            assert address, line
            yield address[0], process
        finally:
            process.kill()
            if process.stderr is not None and not process.stderr.closed:
                log = process.stderr.read()
    assert "Traceback" not in log, log
