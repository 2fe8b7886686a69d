"""The job of `modal_app.py` that measures a GPU: it runs benchmarks/on_gpu.py in a process, and yields its tables.

The folders `benchmarks`, `tests` and `nanoGPT`, a clone, are in the current folder. What is measured: see `on_gpu.py`.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from nanogpt_lite.cloud.calls import Call
from nanogpt_lite.cloud.client.benchmark_tables import BenchmarkTable
from nanogpt_lite.cloud.gpu_time import count_attempt
from nanogpt_lite.errors import ExternalError, UserError

MIN_SECONDS = 30.0  # to measure anything
POLL_INTERVAL = 0.5  # seconds between two looks at the folder of the tables
STOP_TIMEOUT = 10.0  # seconds for the process to end its own processes


def benchmark_job(call: Call, *, time_limit: float, device: str, short: bool = False) -> Iterator[BenchmarkTable]:
    """Measure for at most `time_limit` seconds over all attempts of the call; the table after each part.

    A later attempt starts from the beginning; `UserError` if there is no time left for it. `ExternalError` if the
    benchmark ends without a complete table.
    """
    with count_attempt(call) as gpu_time, TemporaryDirectory() as folder:
        seconds = time_limit - gpu_time.seconds
        if seconds < MIN_SECONDS:
            raise UserError(
                f"the time limit of {time_limit:.0f} s is used up by {gpu_time.attempts} attempts; give a longer "
                "`timeout`"
            )
        options = ["--nanogpt", "nanoGPT", "--device", device, *(["--short"] if short else [])]
        options += ["--seconds", f"{seconds:.0f}", "--out", folder]
        last = None
        with _start([sys.executable, "benchmarks/on_gpu.py", *options]) as process:
            while True:
                has_ended = process.poll() is not None
                table = _read_table(Path(folder))  # after `poll`, so that the last one is not missed
                if table and not _is_same(table, last):
                    yield table
                    last = table
                if has_ended:
                    break
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_INTERVAL)
        if not last or not json.loads(last["json"])["complete"]:
            raise ExternalError(
                f"the benchmark ended with status {process.returncode}; its error is printed above. Correct the cause "
                "and try again"
            )


@contextlib.contextmanager
def _start(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Start the benchmark; at the end of the block it is interrupted, and ends the processes that it has started.

    If it has not ended after `STOP_TIMEOUT` it is killed, and they may go on until the container ends.
    """
    path = os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH", "")]))
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path})
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)  # nothing if it has ended
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _is_same(table: BenchmarkTable, last: BenchmarkTable | None) -> bool:
    """Whether a table shows nothing new. The complete one has another name."""
    return last is not None and (table["name"], table["markdown"]) == (last["name"], last["markdown"])


def _read_table(folder: Path) -> BenchmarkTable | None:
    """The newest table in a folder; None before there is one, and while it is replaced.

    NAME.md is written after NAME.json, so it is read first: once it has changed, both files are the new ones.
    """
    try:
        path = max(folder.glob("[!.]*.md"), key=lambda path: path.stat().st_mtime_ns, default=None)
        if path is None:
            return None
        markdown, json_text = (path.with_suffix(suffix).read_text(encoding="utf-8") for suffix in (".md", ".json"))
    except FileNotFoundError:  # an incomplete table, which is removed once there is a complete one
        return None
    return {"name": path.stem, "json": json_text, "markdown": markdown}
