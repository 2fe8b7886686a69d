"""Trainings that the page starts: each a process of its own, which outlives the page and the server.

A training is `nanogpt-lite train`, with what it prints in runs/NAME/training.log, and with a text that was sent in
runs/NAME/NAME.txt. What it does is read from the files of its run, as of any other training (`runs.run_progress`).
"""

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nanogpt_lite import files
from nanogpt_lite.api.main_job import KEPT_EARLY
from nanogpt_lite.config.schema import Value
from nanogpt_lite.data.folder_names import DATA_DIR
from nanogpt_lite.data.manifest import is_prepared_dir
from nanogpt_lite.data.sources import DATASET_NAMES
from nanogpt_lite.errors import ExternalError
from nanogpt_lite.http_api.fields import FieldError
from nanogpt_lite.http_api.training_request import TrainingRequest
from nanogpt_lite.runs.run_folder import RUNS_DIR, Run, checkpoints_in
from nanogpt_lite.runs.run_progress import is_training

LOG_FILE = "training.log"
LOG_CHARACTERS = 4000  # of the end of a log, which are shown
STOP_SIGNAL: int = getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM)  # the first one on Windows
TRAINING_DEFAULTS: Mapping[str, Value] = {  # of a training that the page starts, which shows samples and early weights
    "sample_interval": 50,
    "keep_early": KEPT_EARLY,
}


class TrainingBusyError(Exception):
    """A training that was started before is still running."""


class Trainings:
    """The trainings that were started since the server was: one at a time."""

    def __init__(self, options: Mapping[str, Value]) -> None:
        """`options`: of each training, such as the device."""
        self._options = options
        self._lock = threading.Lock()
        self._name = ""  # of the run whose training was started last
        self._process: subprocess.Popen[bytes] | None = None
        self._log: Path | None = None

    def start(self, asked: TrainingRequest) -> None:
        """Train a new run.

        `TrainingBusyError`; `FieldError` if the name is taken, or there is no such dataset; `ExternalError` if files
        cannot be written.
        """
        with self._lock, _explained():
            self.require_idle()
            folder = RUNS_DIR / asked.name
            text = folder / f"{asked.name}.txt"
            has_run = (folder / "metrics.jsonl").exists() or bool(checkpoints_in(folder))
            is_retry = asked.name == self._name and not has_run  # the training of this name failed at once
            if folder.exists() and not is_retry:
                raise FieldError("name", f"{folder} exists already; give another `name`")
            dataset = text.as_posix() if asked.text else _path_of_dataset(asked.dataset)
            self._name, self._process, self._log = asked.name, None, None
            folder.mkdir(parents=True, exist_ok=True)
            for path in (text, folder / LOG_FILE):
                path.unlink(missing_ok=True)
            if asked.text:
                with files.atomic_write(text) as temporary:
                    temporary.write_bytes(asked.text.encode())
            preset = {"preset": asked.preset} if asked.preset else {}
            self._launch(asked.name, folder, {"dataset": dataset, **preset, **TRAINING_DEFAULTS, **asked.options})

    def resume(self, name: str, run: Run, options: Mapping[str, Value]) -> None:
        """Continue a run. `TrainingBusyError`; `ExternalError` if its log cannot be written."""
        with self._lock, _explained():
            self.require_idle()
            if is_training(run):
                raise TrainingBusyError(f"another process trains {name}; press Ctrl-C there first, or wait")
            self._launch(
                name, run.out_dir, {"init_from": "resume", "keep_early": TRAINING_DEFAULTS["keep_early"], **options}
            )

    def stop(self, name: str) -> bool:
        """Ask the training of a run to save its state and end. False if this is not the training that runs."""
        with self._lock:
            if self._process is None or not self._is_running or self._name != name:
                return False
            self._process.send_signal(STOP_SIGNAL)
            return True

    def describe(self) -> dict[str, Any] | None:
        """The training that was started last; None if there was none.

        `exit_status` is None while it runs. `log` is the end of what it printed.
        """
        with self._lock:
            if self._process is None or self._log is None:
                return None
            status = self._process.poll()
            return {"name": self._name, "is_running": status is None, "exit_status": status, "log": _tail(self._log)}

    @property
    def _is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def require_idle(self) -> None:
        """`TrainingBusyError` if one runs."""
        if self._is_running:
            raise TrainingBusyError(f"the training of {self._name} is still running; stop it first, or wait")

    def _launch(self, name: str, folder: Path, options: Mapping[str, Value]) -> None:
        options = {"out_dir": folder.as_posix(), **self._options, **options}
        words = [f"--{option}={value}" for option, value in options.items()]
        with (folder / LOG_FILE).open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "nanogpt_lite", "train", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C in the terminal of the server does not reach it
                start_new_session=True,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        self._name, self._log = name, folder / LOG_FILE


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """A time in which an error of the file system becomes an `ExternalError`."""
    try:
        yield
    except OSError as error:
        raise ExternalError(
            f"the training cannot be started ({error}); make room on the disk, or start the server in a folder that "
            "may be written to"
        ) from error


def dataset_names() -> Sequence[str]:
    """The datasets that can be trained on by their names: those that the program knows, and prepared ones."""
    prepared = sorted(path.name for path in DATA_DIR.glob("*") if path.is_dir() and is_prepared_dir(path))
    return list(dict.fromkeys([*DATASET_NAMES, *prepared]))


def _path_of_dataset(name: str) -> str:
    """What the option `dataset` is for a name. `FieldError` if there is no such dataset."""
    if name not in dataset_names():
        raise FieldError("dataset", f"there is no dataset {name!r} here; give one of {', '.join(dataset_names())}")
    return name if name in DATASET_NAMES else (DATA_DIR / name).as_posix()


def _tail(path: Path) -> str:
    """The end of a log, without what a progress bar wrote over."""
    try:
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - LOG_CHARACTERS, 0))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")).strip()
