"""An application for tests, and a server as a process of its own, also as fixtures."""

import contextlib
import http.client
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

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


def ask(address, fields, path="/v1/completions", method="POST"):
    """The status and the JSON of an answer."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
    try:
        connection.request(method, path, json.dumps(fields) if fields is not None else None)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def health(address):
    """What /health says."""
    return ask(address, None, "/health", "GET")[1]


@pytest.fixture(scope="module")
def run_dir(shared_run) -> Path:
    return Path.cwd() / shared_run.out_dir


@pytest.fixture(scope="module")
def server(run_dir):
    """The address of a server that all tests of this module ask."""
    with server_process(run_dir) as (address, _):
        yield address
