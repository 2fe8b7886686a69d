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

    if "remote" not in options:
        options = {"device": "cpu", "threads": 1, **options}
    app = ng.app(run, **options)
    with TestClient(app, base_url="http://localhost:8000", raise_server_exceptions=False) as client:
        yield client


@contextlib.contextmanager
def server_process(out_dir: Path | None, *arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address of a server that answers on a free port, and its process, which is killed at the end.

    `out_dir` is None with `--remote`.
    """
    command = [sys.executable, "-m", "nanogpt_lite", "serve", "--port", "0", *arguments]
    if out_dir is not None:
        command += ["--out_dir", str(out_dir), "--device", "cpu", "--threads", "1"]
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
