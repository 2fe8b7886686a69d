"""Step times of several trainings, in alternating steps: the speed of a machine changes from minute to minute."""

import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from statistics import median

from nanogpt_lite.tracking.records import Record, StepRecord


def timed_options(steps: int) -> dict[str, int]:
    """The options of a training of which `steps` steps are timed: one record per step, no evaluation."""
    return {"max_iters": steps + 1, "log_interval": 1, "eval_interval": steps + 1}


def step_times(runs: Sequence[Generator[Record]], *, steps: int, warm_up: int) -> list[float]:
    """Median seconds per step of each training, without the first `warm_up` steps. The trainings are closed.

    They have the options of `timed_options`.
    """
    step_seconds: list[list[float]] = [[] for _ in runs]
    with ExitStack() as stack:
        for records in runs:
            stack.enter_context(closing(records))
        for _ in range(steps):
            for records, seconds in zip(runs, step_seconds, strict=True):
                begin = time.perf_counter()
                next(record for record in records if isinstance(record, StepRecord))
                seconds.append(time.perf_counter() - begin)
    return [median(seconds[warm_up:]) for seconds in step_seconds]
