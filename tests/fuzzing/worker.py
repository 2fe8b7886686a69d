"""A process that tries inputs: it takes tasks from a pipe, and reports failures and the end of each task.

It counts in shared memory, so that the numbers and the input that was running are known after a crash.
"""

import faulthandler
import importlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import c_longlong
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import Any

from fuzzing.target import Target, make_input, try_input
from nanogpt_lite import files

MEMORY_LIMIT = 2 * 2**30  # bytes, beyond what the process has when it starts a task
STARTING = -1  # in place of the number of an input, while a target makes its files
CRASH_FILE = "crash.txt"  # in the folder of the process: the stack of a crash
NUMBER, ACCEPTED, REFUSED, FAILED = range(4)  # positions in the shared memory

_context = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Task:
    """`count` inputs of a target, from input `first` on. `position` is where in the campaign they are."""

    target: type[Target[Any]]
    seed: int
    first: int
    count: int
    position: int


@dataclass(frozen=True)
class Failure:
    """An input that failed, and how. Failures with the same `cause` are probably one bug."""

    target: str
    number: int  # or STARTING
    cause: str
    details: str


@dataclass(frozen=True)
class TaskDone:
    """The end of a task, and the time that its inputs took."""

    seconds: float


class Worker:
    """The process, as its parent sees it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.progress = RawArray(c_longlong, 4)
        self.connection, child = _context.Pipe()
        self.process = _context.Process(target=_work, args=(child, self.progress, folder), daemon=True)
        self.process.start()
        child.close()  # so that the end of the process closes the pipe
        self.task: Task | None = None
        self.task_started = self.input_started = time.monotonic()
        self._number = STARTING

    def assign(self, task: Task) -> None:
        """Give the process a task; it must have none."""
        self.progress[:] = [STARTING, 0, 0, 0]
        self.task, self._number = task, STARTING
        self.task_started = self.input_started = time.monotonic()
        self.connection.send(task)

    def seconds_on_input(self) -> float:
        """The time since the running input was first seen."""
        if self._number != self.progress[NUMBER]:
            self._number, self.input_started = self.progress[NUMBER], time.monotonic()
        return time.monotonic() - self.input_started

    def stop_hung(self) -> None:
        """End a process that does not answer; its stack is in `CRASH_FILE`."""
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGABRT)  # on which faulthandler writes the stack
        self.process.join(5)
        self.process.kill()
        self.process.join()

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.join()
        self.connection.close()


def _work(connection: Connection, progress: Any, folder: Path) -> None:
    """Do tasks until the pipe is closed."""
    if os.name == "posix":
        os.setpgid(0, 0)  # Ctrl-C reaches the parent only
    os.chdir(folder)
    targets: dict[str, Target[Any]] = {}
    # tests the program on file contents and not on power failures; flushing would take most of the time
    files.sync_to_disk = lambda path: None
    with Path(CRASH_FILE).open("w", encoding="utf-8") as crash_file:
        faulthandler.enable(crash_file)
        while True:
            try:
                task: Task = connection.recv()
            except EOFError:
                return
            connection.send(_do_task(task, targets, connection, progress, folder))


def _do_task(
    task: Task, targets: dict[str, Target[Any]], connection: Connection, progress: Any, folder: Path
) -> TaskDone:
    name = task.target.name
    try:
        (folder / name).mkdir(exist_ok=True)
        os.chdir(folder / name)
        if name not in targets:
            targets[name] = task.target()
    except Exception as error:
        connection.send(_describe(name, STARTING, error))
        return TaskDone(0.0)
    started = time.monotonic()
    with limited_memory():
        for number in range(task.first, task.first + task.count):
            progress[NUMBER] = number
            try:
                accepted = try_input(targets[name], make_input(targets[name], task.seed, number))
                progress[ACCEPTED if accepted else REFUSED] += 1
            except BaseException as error:  # SystemExit and KeyboardInterrupt would be failures too
                progress[FAILED] += 1
                connection.send(_describe(name, number, error))
    return TaskDone(time.monotonic() - started)


def _describe(target: str, number: int, error: BaseException) -> Failure:
    """A failure from an exception. Its cause is where the library, or else the target, was at that moment."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "nanogpt_lite" in frame.filename] or list(frames)
    where = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
    text = "".join(traceback.format_exception(error))
    return Failure(target, number, f"{type(error).__name__} at {where}", text[-6000:])


@contextmanager
def limited_memory() -> Iterator[None]:
    """Limit the memory of the process, so that a huge allocation fails instead of exhausting the machine.

    Linux only. An allocation beyond the limit is a failure of the input, as no file may demand so much.
    """
    if sys.platform != "linux":
        yield
        return
    resource = importlib.import_module("resource")
    before = resource.getrlimit(resource.RLIMIT_AS)
    (used,) = (
        line.split()[1]
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        if "VmSize" in line
    )
    resource.setrlimit(resource.RLIMIT_AS, (int(used) * 1024 + MEMORY_LIMIT, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
