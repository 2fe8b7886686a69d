"""Training on several ranks, from a process that is none of them, by the launcher behind torchrun.

Three kinds of processes run this module: the one that calls `training` and gets the records; one in which PyTorch's
launcher works (`launch`), which wants signals and the main thread for itself; and the ranks (`work`), which call
`pipeline.training`, and the first of which writes the records to a file.
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
from typing import Any

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from nanogpt_lite import files
from nanogpt_lite.api import pipeline, request
from nanogpt_lite.config.options import TrainConfig
from nanogpt_lite.config.schema import Value
from nanogpt_lite.config.signatures import with_options
from nanogpt_lite.data.dataset import Dataset
from nanogpt_lite.device import devices, distributed, signals
from nanogpt_lite.errors import ExternalError, Interrupted, UserError
from nanogpt_lite.tracking.console import Console
from nanogpt_lite.tracking.records import DoneRecord, Record, record_from_json

REQUEST, RECORDS, ERROR = "request.json", "records.jsonl", "error.json"
POLL_INTERVAL = 0.05  # seconds between two looks at what the ranks wrote
STOP_TIMEOUT = 40.0  # seconds for ranks to save and end; the launcher itself kills those that take more than 30


@with_options(TrainConfig)
def train_on_ranks(count: int, dataset: Dataset | str, **options: Value | Path) -> Generator[Record, None, None]:
    """The same as `pipeline.training`, on `count` ranks of this machine: on a GPU each, or on parts of the CPU.

    The ranks see no signal but by way of this process, which passes on one request to stop.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        given = request.paths_to_str(options)
        asked = dataset.source if isinstance(dataset, Dataset) else dataset
        files.write_json(folder / REQUEST, {"dataset": asked, **given})
        written = stack.enter_context((folder / RECORDS).open("w+b"))
        stop = stack.enter_context(signals.stop_on_signals())
        launched = stack.enter_context(_start_launcher(count, folder))
        record, ended = None, False
        while not ended:
            if stop.requested():
                launched.stop()
            ended = launched.process.poll() is not None  # and what it wrote before that is read once more
            for record in _new_records(written):
                yield record
            if not ended:
                time.sleep(POLL_INTERVAL)  # a file tells nobody that it grew
        _raise_rank_error(folder)
        whole = isinstance(record, DoneRecord)
        if stop.signum is not None:
            raise Interrupted(stop.signum, "the state is saved" if whole else "the last checkpoint is as it was")
        if launched.process.returncode or not whole:
            raise ExternalError(
                "a rank has ended; what it said of the reason is above. Put that right, and go on from the last "
                "checkpoint, if there is one (--init_from resume)"
            )


@dataclass
class _Launcher:
    """The process in which the launcher works."""

    process: subprocess.Popen[bytes]
    stopping: bool = False

    def stop(self) -> None:
        """Ask the ranks to save and end; asked twice, they would end at once."""
        if not self.stopping and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        self.stopping = True


@contextlib.contextmanager
def _start_launcher(count: int, folder: Path) -> Iterator[_Launcher]:
    """The ranks, at work; at the end of the block they end too, after they have saved."""
    process = subprocess.Popen(
        [sys.executable, "-m", "nanogpt_lite.cloud.launcher", str(folder), str(count)],
        env={"OMP_NUM_THREADS": str(max(1, devices.resolve_threads(0) // count)), **os.environ},
        stdin=subprocess.PIPE,  # which ends when this process does, however that happens
        start_new_session=True,  # so that Ctrl-C in a terminal comes to them once, from here
    )
    launched = _Launcher(process)
    try:
        yield launched
    finally:
        launched.stop()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT)
        process.kill()
        process.wait()
        assert process.stdin
        process.stdin.close()


def _new_records(written: Any) -> Iterator[Record]:
    """The records in a file from where it was last read, as far as their lines are whole."""
    while True:
        begin = written.tell()
        line = written.readline()
        if not line.endswith(b"\n"):
            written.seek(begin)
            return
        yield record_from_json(json.loads(line))


def _raise_rank_error(folder: Path) -> None:
    """The error that ranks told of: a mistake of the user before what may have followed from it."""
    errors = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(f"*.{ERROR}"))]
    for error in sorted(errors, key=lambda error: error["kind"] != "UserError"):
        raise {"UserError": UserError, "WorldError": ExternalError}[error["kind"]](error["message"])


def launch(folder: Path, count: int) -> None:
    """Start the ranks, wait for them, and pass on signals: PyTorch's elastic launcher, on one machine."""
    threading.Thread(target=_stop_at_stdin_eof, daemon=True).start()
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=folder.name,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,  # who asked for the training decides on that
        logs_specs=DefaultLogsSpecs(log_dir=str(folder)),
    )
    try:
        elastic_launch(config, sys.executable)("-m", "nanogpt_lite.cloud.launcher", str(folder))
    except (ChildFailedError, SignalException):
        raise SystemExit(1) from None  # why is in the ranks' own words, or above


def _stop_at_stdin_eof() -> None:
    """Stop the ranks when the process that asked for them has ended."""
    while os.read(0, 1):  # and not sys.stdin, whose lock would be held while the interpreter ends
        pass
    os.kill(os.getpid(), signal.SIGINT)


def run_rank(folder: Path) -> None:
    """What each rank does: train as `request.json` in the folder says, and write what happens there."""
    request = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
    status = 0
    try:
        with (folder / RECORDS).open("ab", buffering=0) as written:
            for record in pipeline.training(
                console=Console(bar=False, silent=not distributed.launched_as_main_process()), **request
            ):
                if distributed.launched_as_main_process():
                    written.write(json.dumps(record.to_json()).encode() + b"\n")
    except (UserError, ExternalError) as error:
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
