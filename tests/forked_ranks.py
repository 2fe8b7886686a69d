"""Ranks for tests, without torchrun: processes that are forked from one that has imported everything already."""

import multiprocessing
import os
import signal
import socket
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["nanogpt_lite.pipeline", "torch._dynamo"])  # the slow imports
_started: list[BaseProcess] = []


def start(count: int, work: Callable[..., Any], *arguments: Any) -> list[BaseProcess]:
    """`count` ranks, each with a call of `work(*arguments)`; the function is one of a module that can be imported."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = []
    for rank in range(count):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        variables = {name: str(value) for name, value in own.items()}
        process = _context.Process(target=_be_rank, args=(str(Path.cwd()), variables, work, arguments))
        process.start()
        processes.append(process)
        _started.append(process)
    return processes


def kill_all() -> None:
    """End what a failed test has left behind."""
    while _started:
        process = _started.pop()
        process.kill()
        process.join()


def statuses(processes: list[BaseProcess], seconds: float = 60) -> list[int | None]:
    """How the processes ended: their exit statuses, below 0 the signal that killed one, None if it hangs."""
    for process in processes:
        process.join(seconds)
        if process.is_alive():
            process.kill()
            process.join()
    return [None if process.exitcode == -signal.SIGKILL else process.exitcode for process in processes]


def run(count: int, work: Callable[..., Any], *arguments: Any) -> list[int | None]:
    """The same, to the end."""
    return statuses(start(count, work, *arguments))


def _be_rank(folder: str, variables: dict[str, str], work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.chdir(folder)
    os.environ.update(variables)
    import torch

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
