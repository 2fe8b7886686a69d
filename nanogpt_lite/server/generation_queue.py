"""One thread that computes, and the jobs that wait for it.

A job is a generator, so it can be left between two of its items: when the client has gone, or when the server ends.
"""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import closing
from typing import Any, Generic, TypeVar

T = TypeVar("T")

JOIN_SECONDS = 1.5  # at the end, for the item that is being computed


class QueueFullError(Exception):
    """Too many jobs wait already."""


class QueueClosedError(Exception):
    """No more jobs are taken."""


class Job(Generic[T]):
    """A generator that runs in the thread of a `GenerationQueue`. Its items are read with `async for`.

    What the generator raises, the reader gets.
    """

    def __init__(self, work: Callable[[], Generator[T, None, None]]) -> None:
        self.is_cancelled = False
        self._work = work
        self._loop = asyncio.get_running_loop()
        self._items: asyncio.Queue[T | Exception | None] = asyncio.Queue()  # None: there is no further one

    def cancel(self) -> None:
        """Stop computing after the present item, and end the `async for`. From any thread."""
        self.is_cancelled = True
        self._send(None)

    async def __aiter__(self) -> AsyncIterator[T]:
        while (item := await self._items.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item

    def take_ready(self) -> list[T]:
        """The items that can be had without waiting, up to an error or the end."""
        ready = []
        while not self._items.empty():
            item = self._items.get_nowait()
            if item is None or isinstance(item, Exception):
                self._items.put_nowait(item)
                break
            ready.append(item)
        return ready

    def run(self) -> None:
        """Compute all items, in the thread that calls it."""
        try:
            with closing(self._work()) as items:
                for item in items:
                    if self.is_cancelled:
                        return
                    self._send(item)
            self._send(None)
        except Exception as error:  # every one: the reader has to get it, and the thread goes on with the next job
            self._send(error)

    def _send(self, item: T | Exception | None) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._items.put_nowait, item)


class GenerationQueue:
    """Runs jobs one after the other. `max_waiting` may wait for the one that runs."""

    def __init__(self, max_waiting: int) -> None:
        self.max_waiting = max_waiting
        self.is_closed = False
        self._waiting: deque[Job[Any]] = deque()
        self._running: Job[Any] | None = None
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    @property
    def num_waiting(self) -> int:
        """How many jobs wait, without those that were cancelled."""
        with self._changed:
            return sum(not job.is_cancelled for job in self._waiting)

    @property
    def is_running(self) -> bool:
        """Whether a job is being computed."""
        return self._running is not None

    def submit(self, work: Callable[[], Generator[T, None, None]]) -> Job[T]:
        """Let a generator run when its turn comes.

        `QueueFullError` if too many wait, `QueueClosedError` after `close`.
        """
        if self.is_closed:
            raise QueueClosedError
        if self.num_waiting >= self.max_waiting:
            raise QueueFullError
        job = Job(work)
        with self._changed:
            # without those that were cancelled, which would keep what they are made of until their turn comes
            self._waiting = deque(waiting for waiting in self._waiting if not waiting.is_cancelled)
            self._waiting.append(job)
            self._changed.notify()
        if self._thread is None:  # not before: an application may be made in one process and run in another
            self._thread = threading.Thread(target=self._run_jobs, name="generation", daemon=True)
            self._thread.start()
        return job

    def open(self) -> None:
        """Take jobs again, after `close` and `join`."""
        self.is_closed = False
        if self._thread is not None and not self._thread.is_alive():
            self._thread = None

    def close(self) -> None:
        """Take no more jobs, and leave all: the one that runs after its present item."""
        with self._changed:
            self.is_closed = True
            jobs = [*self._waiting, self._running]
            self._changed.notify()
        for job in jobs:
            if job is not None:
                job.cancel()

    def join(self) -> None:
        """After `close`, wait for the item that is being computed, but not for long."""
        if self._thread is not None:
            self._thread.join(JOIN_SECONDS)

    def _run_jobs(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self.is_closed)
                if self.is_closed:
                    return
                self._running = self._waiting.popleft()
            if not self._running.is_cancelled:
                self._running.run()
            self._running = None
