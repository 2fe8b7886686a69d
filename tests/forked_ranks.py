"""Ranks for tests, without torchrun: processes that are forked from one that has imported everything already."""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["nanogpt_lite.api.pipeline", "torch._dynamo"])  # the slow imports
_started: list[BaseProcess] = []
_jobs: list["Job"] = []
HUNG = "hung"


class Job:
    """Ranks with the store that torchrun keeps for them: each `start` is one more attempt of the same job."""

    def __init__(self) -> None:
        self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.attempts = 0

    def start(self, count: int, work: Callable[..., Any], *arguments: Any) -> list[BaseProcess]:
        """`count` ranks, each with a call of `work(*arguments)`; the function is one that can be imported."""
        shared = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "TORCHELASTIC_RESTART_COUNT": self.attempts}
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": self.store.port, "TORCHELASTIC_USE_AGENT_STORE": True}
        self.attempts += 1
        processes = []
        for rank in range(count):
            variables = {name: str(value) for name, value in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()}
            process = _context.Process(target=_be_rank, args=(str(Path.cwd()), variables, work, arguments))
            process.start()
            processes.append(process)
        _started.extend(processes)
        _jobs.append(self)  # its store has to live as long as the ranks
        return processes

    def run(self, count: int, work: Callable[..., Any], *arguments: Any) -> list[int | str | None]:
        """The same, to the end."""
        return statuses(self.start(count, work, *arguments))


def run(count: int, work: Callable[..., Any], *arguments: Any) -> list[int | str | None]:
    """One attempt of a new job, to the end."""
    return Job().run(count, work, *arguments)


def statuses(processes: list[BaseProcess], seconds: float = 60) -> list[int | str | None]:
    """How the processes ended: their exit statuses, below 0 the signal that killed one, or that one hangs."""
    ended: list[int | str | None] = []
    for process in processes:
        process.join(seconds)
        ended.append(HUNG if process.is_alive() else process.exitcode)
    kill_all()
    return ended


def kill_all() -> None:
    """End what hangs, or what a failed test has left behind."""
    _jobs.clear()
    while _started:
        process = _started.pop()
        process.kill()
        process.join()


def _be_rank(folder: str, variables: dict[str, str], work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.chdir(folder)
    os.environ.update(variables)
    import error_recorder
    import torch

    error_recorder.listen()
    torch.set_num_threads(1)
    try:
        work(*arguments)
    except Exception as error:
        traceback.print_exc()
        name = f"rank{variables['RANK']}.error"
        Path(name).write_text(f"{type(error).__name__}: {error}")
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
