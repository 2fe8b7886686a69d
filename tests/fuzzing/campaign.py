"""A campaign: many inputs of all targets, divided among processes. A failure, a crash or a hang does not stop it.

The inputs of a campaign have positions 0, 1, 2 and so on, and each position belongs to a target, in the proportion of
their shares. So a part of a campaign is a range of positions, and two parts together are the whole.
"""

import itertools
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path
from typing import Any

from fuzzing.target import Target
from fuzzing.worker import ACCEPTED, CRASH_FILE, FAILED, NUMBER, REFUSED, STARTING, Failure, Task, TaskDone, Worker

ROUND = 2000  # positions whose inputs are given to the processes before the next ones
START_TIMEOUT = 120  # seconds for a target to make its files, and for PyTorch to be imported
SHOWN_FAILURES = 3  # of each cause

Targets = Sequence[type[Target[Any]]]


@dataclass
class Tally:
    """What happened to the inputs of a target."""

    accepted: int = 0
    refused: int = 0
    failed: int = 0
    seconds: float = 0.0  # of one process

    @property
    def inputs(self) -> int:
        """All inputs that were tried."""
        return self.accepted + self.refused + self.failed


def pattern(targets: Targets) -> list[type[Target[Any]]]:
    """The target of each position, which repeats after as many positions as the shares add up to."""
    places = [((n + 0.5) / target.share, index) for index, target in enumerate(targets) for n in range(target.share)]
    return [targets[index] for _, index in sorted(places)]


def inputs_before(position: int, targets: Targets) -> Counter[str]:
    """The number of inputs of each target at the positions before this one."""
    repeated = pattern(targets)
    whole, rest = divmod(position, len(repeated))
    counts = Counter({target.name: whole * target.share for target in targets})
    counts.update(target.name for target in repeated[:rest])
    return counts


def make_tasks(targets: Targets, *, seed: int, first: int, inputs: int) -> Iterator[Task]:
    """The inputs at the positions from `first` on, as tasks."""
    for start in range(first, first + inputs, ROUND):
        before = inputs_before(start, targets)
        after = inputs_before(min(start + ROUND, first + inputs), targets)
        for target in targets:
            if count := after[target.name] - before[target.name]:
                yield Task(target, seed, before[target.name], count, start)


@dataclass
class Campaign:
    """Tries the inputs of `tasks` in `processes` processes.

    `timeout`: seconds after which a running input counts as hung. `report` gets each failure that is to be shown, and
    `progress` the number of inputs tried so far. `folder` is for the files of the processes. `unfinished`, after an
    interruption: the first position whose input may not have been tried.
    """

    tasks: Iterator[Task]
    processes: int
    folder: Path
    timeout: float
    report: Callable[[Failure], None]
    progress: Callable[[int], None] = lambda number: None
    tallies: dict[str, Tally] = field(default_factory=dict)
    causes: Counter[tuple[str, str]] = field(default_factory=Counter)  # of the failures: target, cause
    unfinished: int | None = None
    _workers: list[Worker] = field(default_factory=list)
    _again: list[Task] = field(default_factory=list)  # the rest of tasks whose process has ended
    _excluded: set[str] = field(default_factory=set)  # targets that cannot make their files
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def run(self) -> None:
        """Try all inputs. After an interruption the results so far stay in `tallies` and `causes`."""
        try:
            self._workers = [self._start_worker() for _ in range(self.processes)]
            while self._assign_tasks():
                busy = [worker for worker in self._workers if worker.task]
                ready = connection.wait([worker.connection for worker in busy], timeout=0.2)
                for worker in busy:
                    if worker.connection in ready:
                        self._receive(worker)
                    elif worker.seconds_on_input() > self._limit(worker):
                        worker.stop_hung()
                        self._replace(worker, "hang", f"no result after {self._limit(worker):g} s")
                self.progress(self.tried())
        finally:
            tasks = [*(worker.task for worker in self._workers), *self._again, next(self.tasks, None)]
            self.unfinished = min((task.position for task in tasks if task), default=None)
            for worker in self._workers:
                self._count(worker)
                worker.stop()

    def tried(self) -> int:
        """The number of inputs tried so far."""
        running = sum(sum(worker.progress[ACCEPTED:]) for worker in self._workers if worker.task)
        return running + sum(tally.inputs for tally in self.tallies.values())

    def _start_worker(self) -> Worker:
        return Worker(self.folder / f"process-{next(self._numbers)}")

    def _assign_tasks(self) -> bool:
        """Give tasks to the processes without one. False if there is nothing left to do."""
        for worker in self._workers:
            if worker.task is None and (task := self._take_task()):
                worker.assign(task)
        return any(worker.task for worker in self._workers)

    def _take_task(self) -> Task | None:
        while task := self._again.pop() if self._again else next(self.tasks, None):
            if task.target.name not in self._excluded:
                return task
        return None

    def _receive(self, worker: Worker) -> None:
        """Take one message of a process, or notice that it has ended."""
        try:
            message: Failure | TaskDone = worker.connection.recv()
        except (EOFError, ConnectionError):
            worker.process.join()
            self._replace(worker, "crash", _describe_exit(worker.process.exitcode))
            return
        if isinstance(message, Failure):
            self._record(message)
        else:
            self._count(worker, message.seconds)

    def _record(self, failure: Failure) -> None:
        self.causes[failure.target, failure.cause] += 1
        if failure.number == STARTING:
            self._excluded.add(failure.target)
        if self.causes[failure.target, failure.cause] <= SHOWN_FAILURES:
            self.report(failure)

    def _count(self, worker: Worker, seconds: float | None = None) -> None:
        """Add what a process has done of its task, and take the task from it."""
        if worker.task is None:
            return
        tally = self.tallies.setdefault(worker.task.target.name, Tally())
        tally.accepted += worker.progress[ACCEPTED]
        tally.refused += worker.progress[REFUSED]
        tally.failed += worker.progress[FAILED]
        tally.seconds += time.monotonic() - worker.task_started if seconds is None else seconds
        worker.task = None

    def _replace(self, worker: Worker, cause: str, details: str) -> None:
        """Record the input at which a process ended, and let a new process do the rest of its task."""
        task, number = worker.task, worker.progress[NUMBER]
        assert task is not None
        stack = (worker.folder / CRASH_FILE).read_text(errors="replace")
        self._record(Failure(task.target.name, number, f"{cause}: {details}", f"{details}\n{stack}"))
        if number != STARTING:
            worker.progress[FAILED] += 1
            if rest := task.first + task.count - number - 1:
                self._again.append(Task(task.target, task.seed, number + 1, rest, task.position))
        self._count(worker)
        worker.stop()
        self._workers[self._workers.index(worker)] = self._start_worker()

    def _limit(self, worker: Worker) -> float:
        return START_TIMEOUT if worker.progress[NUMBER] == STARTING else self.timeout


def _describe_exit(status: int | None) -> str:
    if status is not None and status < 0:
        return f"the process was ended by {signal.Signals(-status).name}"
    return f"the process ended with exit status {status}"
