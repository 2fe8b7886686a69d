"""The thread that computes: one job at a time, errors, jobs that are left, and the end."""

import asyncio
import threading

import pytest

from nanogpt_lite.server.generation_queue import GenerationQueue, QueueClosedError, QueueFullError


def run(test):
    """Run a coroutine function with a queue, which is closed after it."""

    async def whole():
        jobs = GenerationQueue(max_waiting=3)
        try:
            async with asyncio.timeout(30):
                await test(jobs)
        finally:
            jobs.close()
            jobs.join()

    asyncio.run(whole())


async def begin(jobs, steps):
    """Submit a job, and wait until it is the one that runs."""
    job = jobs.submit(steps)
    assert await asyncio.to_thread(steps.started.wait, 30)
    return job


async def items_of(job):
    return [item async for item in job]


class Steps:
    """A generator that waits for permission before each item, and notes that it was closed."""

    def __init__(self):
        self.permits, self.started, self.closed = threading.Semaphore(0), threading.Event(), threading.Event()
        self.made = 0

    def __call__(self):
        try:
            self.started.set()
            while True:
                assert self.permits.acquire(timeout=30)
                self.made += 1
                yield self.made
        finally:
            self.closed.set()


def test_items_come_in_their_order_and_jobs_one_after_the_other():
    running = []

    def work(name):
        running.append(name)
        assert len(running) == 1
        yield f"{name}1"
        yield f"{name}2"
        running.pop()

    async def test(jobs):
        submitted = [jobs.submit(lambda name=name: work(name)) for name in "abc"]
        assert await asyncio.gather(*map(items_of, submitted)) == [["a1", "a2"], ["b1", "b2"], ["c1", "c2"]]

    run(test)


def test_an_error_reaches_the_reader_and_the_next_job_runs():
    def fail():
        yield 1
        raise LookupError("no")

    async def test(jobs):
        failing, fine = jobs.submit(fail), jobs.submit(lambda: (number for number in (7, 8)))
        received = []
        with pytest.raises(LookupError, match="no"):
            async for item in failing:
                received.append(item)
        assert received == [1]
        assert await items_of(fine) == [7, 8]

    run(test)


def test_a_job_that_is_cancelled_is_closed_after_its_present_item():
    steps = Steps()

    async def test(jobs):
        job = jobs.submit(steps)
        steps.permits.release()
        async for item in job:
            assert item == 1
            job.cancel()
        steps.permits.release()  # the item that is being computed
        assert await asyncio.to_thread(steps.closed.wait, 30)
        assert steps.made == 2
        assert await items_of(jobs.submit(lambda: iter_once("next"))) == ["next"]

    run(test)


def iter_once(item):
    yield item


def test_a_job_that_is_cancelled_before_its_turn_never_starts():
    first, second = Steps(), Steps()

    async def test(jobs):
        running, waiting = jobs.submit(first), jobs.submit(second)
        waiting.cancel()
        assert await items_of(waiting) == []
        running.cancel()
        first.permits.release()
        assert await asyncio.to_thread(first.closed.wait, 30)
        while jobs._waiting or jobs.is_running:
            await asyncio.sleep(0.001)  # the other thread sends no event that can be awaited
        assert not second.started.is_set()

    run(test)


def test_too_many_jobs_are_refused_until_one_has_ended():
    steps = Steps()

    async def test(jobs):
        job = await begin(jobs, steps)
        waiting = [jobs.submit(lambda: iter_once(1)) for _ in range(3)]
        with pytest.raises(QueueFullError):
            jobs.submit(lambda: iter_once(1))
        job.cancel()
        steps.permits.release()
        for waited in waiting:
            assert await items_of(waited) == [1]
        assert await items_of(jobs.submit(lambda: iter_once(2))) == [2]

    run(test)


def test_jobs_that_were_cancelled_do_not_fill_the_queue():
    steps = Steps()

    async def test(jobs):
        await begin(jobs, steps)
        for _ in range(5):
            jobs.submit(lambda: iter_once(1)).cancel()
        assert jobs.num_waiting == 0
        waiting = jobs.submit(lambda: iter_once(2))
        assert len(jobs._waiting) == 1, "what they are made of is not kept"
        assert (jobs.num_waiting, jobs.is_running) == (1, True)
        steps.permits.release(3)
        jobs.close()
        assert await items_of(waiting) == []

    run(test)


def test_closing_leaves_the_running_job_after_its_present_item_and_ends_all_readers():
    steps = Steps()

    async def test(jobs):
        running = await begin(jobs, steps)
        waiting = jobs.submit(lambda: iter_once(1))
        jobs.close()
        assert (await items_of(running), await items_of(waiting)) == ([], [])
        steps.permits.release()
        jobs.join()
        assert steps.closed.is_set()
        with pytest.raises(QueueClosedError):
            jobs.submit(lambda: iter_once(1))
        jobs.open()
        assert await items_of(jobs.submit(lambda: iter_once(1))) == [1]

    run(test)


def test_what_is_ready_can_be_taken_at_once():
    async def test(jobs):
        job = jobs.submit(lambda: (number for number in range(5)))
        async for first in job:
            while job._items.qsize() != 5:  # four items and the end
                await asyncio.sleep(0.001)  # the other thread sends no event that can be awaited
            assert (first, job.take_ready()) == (0, [1, 2, 3, 4])
            assert job.take_ready() == []

    run(test)


def test_an_event_loop_that_is_gone_does_not_end_the_thread():
    jobs, steps = GenerationQueue(max_waiting=3), Steps()

    async def leave():
        await begin(jobs, steps)

    async def come_again():
        job = jobs.submit(lambda: iter_once("again"))
        assert jobs._running is not None
        jobs._running.cancel()
        steps.permits.release()
        assert await items_of(job) == ["again"]
        jobs.close()

    asyncio.run(leave())
    steps.permits.release()
    asyncio.run(come_again())
    assert steps.closed.is_set()
