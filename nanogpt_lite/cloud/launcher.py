"""Trains on several ranks of one machine from a process that is not a rank, with the launcher behind torchrun.

Three kinds of processes run this module. The calling process iterates over the records (`train_on_ranks`). A second
one runs PyTorch's launcher (`launch`), which needs the main thread and the signals of its process. The ranks
(`run_rank`) call `pipeline.training_to_end`, and the main one writes the records to a file, which the caller polls.

It needs sessions and signals as Linux and macOS have them: it runs in Modal's containers, never on Windows.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO, Unpack

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from nanogpt_lite import files
from nanogpt_lite.api import pipeline, request
from nanogpt_lite.config.keyword_types import PresetName, TrainOptions
from nanogpt_lite.config.options import TrainConfig
from nanogpt_lite.config.signatures import with_options
from nanogpt_lite.config.spelling import for_modal
from nanogpt_lite.data.dataset import Dataset
from nanogpt_lite.device import devices, distributed, signals
from nanogpt_lite.errors import ExternalError, Interrupted, NanoGPTLiteError, UserError
from nanogpt_lite.tracking.console import Console
from nanogpt_lite.tracking.records import DoneRecord, Record, record_from_json

REQUEST, RECORDS, ERROR = "request.json", "records.jsonl", "error.json"
POLL_INTERVAL = 0.05  # seconds between two reads of the file of records
STOP_TIMEOUT = 25.0  # seconds for ranks to save and exit; Modal kills a container 30 seconds after SIGINT


@with_options(TrainConfig)
def train_on_ranks(
    world_size: int,
    dataset: Dataset | str,
    *,
    preset: PresetName | None = None,
    overwrite: bool = False,
    **options: Unpack[TrainOptions],
) -> Generator[Record, None, None]:
    """The same as `pipeline.training_to_end`, on `world_size` ranks of this machine: a GPU or a part of the CPU each.

    The ranks run in a session of their own, so no signal reaches them directly: this process passes on one request to
    stop. `ExternalError` if a rank ends without an error of its own, as when it is killed.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        source = dataset.source if isinstance(dataset, Dataset) else dataset
        arguments = {"dataset": source, "preset": preset, "overwrite": overwrite, **request.paths_to_str(options)}
        files.write_json(folder / REQUEST, arguments)
        record_file = stack.enter_context((folder / RECORDS).open("w+b"))
        stop = stack.enter_context(signals.stop_on_signals())
        launcher = stack.enter_context(_start_launcher(world_size, folder))
        record = None
        for record in _poll_records(launcher, record_file, stop):
            yield record
        _raise_rank_error(folder)
        is_done = isinstance(record, DoneRecord)
        if stop.signum is not None:
            raise Interrupted(stop.signum, "the state is saved" if is_done else "the last checkpoint is unchanged")
        if launcher.process.returncode or not is_done:
            raise ExternalError(
                "a rank ended without finishing; its error is printed above. Correct the cause and train again: "
                "--init-from resume continues from the last checkpoint, if there is one"
            )


@dataclass
class _Launcher:
    """The process that runs PyTorch's launcher."""

    process: subprocess.Popen[bytes]
    stopping: bool = False

    def stop(self) -> None:
        """Ask the ranks to save and exit, once: a second signal would end them without saving."""
        if not self.stopping and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        self.stopping = True


@contextlib.contextmanager
def _start_launcher(world_size: int, folder: Path) -> Iterator[_Launcher]:
    """Start the launcher and with it the ranks; at the end of the block they save and exit."""
    process = subprocess.Popen(
        [sys.executable, "-m", "nanogpt_lite.cloud.launcher", str(folder), str(world_size)],
        env={"OMP_NUM_THREADS": str(max(1, devices.resolve_threads(0) // world_size)), **os.environ},
        stdin=subprocess.PIPE,  # closed when this process ends, also by SIGKILL: see `_stop_at_stdin_eof`
        start_new_session=True,  # a terminal's Ctrl-C reaches this process alone, which passes it on once
    )
    launcher = _Launcher(process)
    try:
        yield launcher
    finally:
        launcher.stop()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT)
        process.kill()
        process.wait()
        assert process.stdin
        process.stdin.close()


def _poll_records(
    launcher: _Launcher, record_file: BinaryIO, stop: signals.StopRequest
) -> Generator[Record, None, None]:
    """The records as the main rank writes them, until the launcher has exited."""
    exited = False
    while not exited:
        if stop.requested():
            launcher.stop()
        exited = launcher.process.poll() is not None  # before the read, so that the last records are read too
        yield from _read_new_records(record_file)
        if not exited:
            time.sleep(POLL_INTERVAL)  # Python has no portable way to wait until a file grows


def _read_new_records(record_file: BinaryIO) -> Iterator[Record]:
    """The records of the complete lines after the current position of the file."""
    while True:
        line_start = record_file.tell()
        line = record_file.readline()
        if not line.endswith(b"\n"):
            record_file.seek(line_start)
            return
        yield record_from_json(json.loads(line))


def _raise_rank_error(folder: Path) -> None:
    """Raise the error that a rank wrote, if any; a `UserError` first, for other errors may be its consequence."""
    errors = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(f"*.{ERROR}"))]
    for error in sorted(errors, key=lambda error: error["kind"] != "UserError"):
        kind = UserError if error["kind"] == "UserError" else ExternalError
        raise kind(error["message"])


def launch(folder: Path, world_size: int) -> None:
    """Start the ranks, wait for them, and pass on signals, with PyTorch's elastic launcher for one machine."""
    threading.Thread(target=_stop_at_stdin_eof, daemon=True).start()
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=world_size,
        run_id=folder.name,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="127.0.0.1",  # not the host's name, which a sandbox may be unable to resolve
        max_restarts=0,  # the caller decides whether to train again
        logs_specs=DefaultLogsSpecs(log_dir=str(folder)),
    )
    try:
        elastic_launch(config, sys.executable)("-m", "nanogpt_lite.cloud.launcher", str(folder))
    except (ChildFailedError, SignalException):
        raise SystemExit(1) from None  # the ranks have written or printed their errors


def _stop_at_stdin_eof() -> None:
    """Stop the ranks when the calling process has ended, which closes standard input."""
    while os.read(0, 1):  # not sys.stdin: its lock would still be held while the interpreter shuts down
        pass
    os.kill(os.getpid(), signal.SIGINT)


def run_rank(folder: Path) -> None:
    """Train one rank as request.json in the folder says; write the records, or the error, to the folder."""
    is_main_process = distributed.launched_as_main_process()
    arguments = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
    status = 0
    try:
        with (folder / RECORDS).open("ab", buffering=0) as record_file:
            console = Console(bar=False, silent=not is_main_process, spell=for_modal)
            for record in pipeline.training_to_end(console=console, **arguments):
                if is_main_process:
                    record_file.write(json.dumps(record.to_json()).encode() + b"\n")
    except NanoGPTLiteError as error:
        content = {"kind": type(error).__name__, "message": str(error)}
        files.write_json(folder / f"{distributed.launched_rank():04}.{ERROR}", content)
        status = 1
    except Interrupted as interrupted:
        status = 128 + interrupted.signum
    distributed.hard_exit(status)
    raise SystemExit(status)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        launch(Path(sys.argv[1]), int(sys.argv[2]))
    else:
        run_rank(Path(sys.argv[1]))
