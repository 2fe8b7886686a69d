"""Ranks for tests, without torchrun: processes forked from a server process that has imported PyTorch already."""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]

_has_fork = "forkserver" in multiprocessing.get_all_start_methods()  # not on Windows, where these tests are skipped
_context: Any = multiprocessing.get_context("forkserver" if _has_fork else "spawn")
_context.set_forkserver_preload(["nanogpt_lite.api.pipeline", "torch._dynamo"])  # the slow imports
_started: list[BaseProcess] = []
_jobs: list["Job"] = []
HUNG = "hung"


class Job:
    """A job of torchrun: it has one store, and each `start` is a new attempt with new processes."""

    def __init__(self) -> None:
        self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.attempts = 0

    def start(self, count: int, work: Callable[..., Any], *arguments: Any) -> list[BaseProcess]:
        """Start `count` ranks, each of which calls `work(*arguments)`. The function has to be importable by name."""
        shared: dict[str, object] = {
            "WORLD_SIZE": count,
            "LOCAL_WORLD_SIZE": count,
            "TORCHELASTIC_RESTART_COUNT": self.attempts,
        }
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": self.store.port, "TORCHELASTIC_USE_AGENT_STORE": True}
        self.attempts += 1
        processes: list[BaseProcess] = []
        for rank in range(count):
            variables = {name: str(value) for name, value in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()}
            process = _context.Process(target=_run_rank, args=(str(Path.cwd()), variables, work, arguments))
            process.start()
            processes.append(process)
        _started.extend(processes)
        _jobs.append(self)  # the store has to exist as long as the ranks
        return processes

    def run(self, count: int, work: Callable[..., Any], *arguments: Any) -> list[int | str | None]:
        """Start ranks and wait for them; their exit statuses."""
        return statuses(self.start(count, work, *arguments))


def run(count: int, work: Callable[..., Any], *arguments: Any) -> list[int | str | None]:
    """Run one attempt of a new job; the exit statuses of the ranks."""
    return Job().run(count, work, *arguments)


def statuses(processes: list[BaseProcess], seconds: float = 60) -> list[int | str | None]:
    """Wait for the processes. An exit status, a negative signal number, or `HUNG` for each."""
    ended: list[int | str | None] = []
    for process in processes:
        process.join(seconds)
        ended.append(HUNG if process.is_alive() else process.exitcode)
    kill_all()
    return ended


def kill_all() -> None:
    """Kill processes that hang or that a failed test has left."""
    _jobs.clear()
    while _started:
        process = _started.pop()
        process.kill()
        process.join()


def _run_rank(folder: str, variables: dict[str, str], work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.chdir(folder)
    os.environ.update(variables)
    import error_recorder
    import torch

    error_recorder.start()
    torch.set_num_threads(1)
    try:
        work(*arguments)
    except Exception as error:
        traceback.print_exc()
        name = f"rank{variables['RANK']}.error"
        Path(name).write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
