"""The ranks of one training: processes that share the rows of each step, one for each GPU or part of the CPU.

`torchrun` starts them, and the environment tells each its number. A rank goes the same road as a process that trains
alone, and calls these functions where it needs the others; for a process alone they do nothing. Small things, such
as "somebody asked to stop", travel between the CPUs, gradients between the GPUs where there are any.
"""

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nanogpt_lite.errors import ExternalError, UserError

# After an error never let go: PyTorch can hang when DistributedDataParallel is the last to hold its group.
_groups: list[Any] = []
_job: list[Any] = []  # the store that torchrun keeps for all its attempts


def rank() -> int:
    """The number of this process among those that train together, on all machines; the first is 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many ranks train together; 1 for a process alone."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main_process() -> bool:
    """Whether this is the rank that writes, and talks; before it has met the others too."""
    return _env_int("WORLD_SIZE", 1) == 1 or _env_int("RANK", 0) == 0


def local_device() -> str:
    """The GPU of this rank; "cuda", the current one, for a process alone. `UserError` if there are too few."""
    if world_size() == 1:
        return "cuda"
    wanted, there = _env_int("LOCAL_WORLD_SIZE", 1), torch.cuda.device_count()
    if wanted > there:
        raise UserError(
            f"{wanted} ranks were started on a machine with {there} GPUs, and each needs its own; "
            f"start {there}, or give --device cpu"
        )
    return f"cuda:{_env_int('LOCAL_RANK', 0)}"


def rank_slice(rows: int) -> slice:
    """Which of the rows of a step are this rank's."""
    share = rows // world_size()
    return slice(rank() * share, (rank() + 1) * share)


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Meet the other ranks, and part at the end. `ExternalError` if they cannot be found, or are lost meanwhile.

    After an error the ranks do not part, since others may wait: the process is of no more use for training.
    """
    count = _env_int("WORLD_SIZE", 1)
    if count == 1:
        yield
        return
    try:
        store, own, count = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
        # torchrun keeps one store for all attempts, in which the addresses of ranks that are gone would be found
        attempt = f"attempt {_env_int('TORCHELASTIC_RESTART_COUNT', 0)}, training {len(_groups)}"
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        prefixed = dist.PrefixStore(attempt, store)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=prefixed, rank=own, world_size=count)
    except (ValueError, RuntimeError) as error:
        raise ExternalError(
            f"WORLD_SIZE={count} says that this is one of several processes, and the others cannot be found "
            f"({_first_line(error)}); start them with torchrun, or unset WORLD_SIZE"
        ) from error
    _groups.append(dist.group.WORLD)
    _job[:] = [store]
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, ExternalError) and (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise ExternalError(
                f"the ranks have lost each other, perhaps because one has ended ({_first_line(error)})"
            ) from error
        raise
    dist.destroy_process_group()  # not after an error: with NCCL it would wait for ranks that wait for this one
    _groups[-1] = None


def hard_exit(status: int) -> None:
    """End this process, with that exit status, if it is a rank: PyTorch's threads may abort or hang an ordinary end."""
    if _groups:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def load_attempt_dir() -> str:
    """The folder of the run that an earlier attempt of this job began: torchrun starts ranks anew when one dies."""
    if world_size() == 1:
        return ""
    known = is_main_process() and _job[0].check([_attempt_key()])
    return broadcast(_job[0].get(_attempt_key()).decode() if known else "")


def save_attempt_dir(folder: str) -> None:
    """Let later attempts of this job know that it has begun this run."""
    if world_size() > 1:
        _job[0].set(_attempt_key(), folder)


@contextlib.contextmanager
def main_process_first() -> Iterator[None]:
    """The first rank goes through the block alone, and the others after it. If it fails there, so do they."""
    if world_size() == 1:
        yield
        return
    if not is_main_process():
        kind, _, message = broadcast("").partition(" ")
        if kind:
            if kind == "UserError":
                raise UserError(message)
            raise ExternalError(
                f"the first rank has ended ({message or 'interrupted'}); put that right, and start again"
            )
        yield
        return
    try:
        yield
    except BaseException as error:
        broadcast(f"{type(error).__name__} {error}")
        raise
    broadcast("")


def broadcast(text: str) -> str:
    """The text that the first rank has."""
    if world_size() == 1:
        return text
    sent = torch.tensor(list(text.encode("utf-8", "surrogateescape")), dtype=torch.uint8)
    length = torch.tensor(len(sent))
    dist.broadcast(length, 0)
    if not is_main_process():
        sent = torch.empty(int(length), dtype=torch.uint8)
    dist.broadcast(sent, 0)
    return bytes(sent.tolist()).decode("utf-8", "surrogateescape")


def all_reduce_max(*values: float) -> list[float]:
    """For each of the values, the greatest that a rank has."""
    return _all_reduce(values, dist.ReduceOp.MAX)


def all_reduce_sum(*values: float) -> list[float]:
    """For each of the values, the sum over the ranks."""
    return _all_reduce(values, dist.ReduceOp.SUM)


def all_reduce_mean(value: Tensor) -> Tensor:
    """The mean of the ranks' tensors, on the device where they are."""
    if world_size() > 1:
        dist.all_reduce(value)
        value /= world_size()
    return value


def wrap_ddp(network: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """The network, with the weights of the first rank, so that after `backward` each rank has the mean gradient."""
    if world_size() == 1:
        return network
    assert isinstance(network, nn.Module)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with warnings.catch_warnings():  # 2.13 has a new name for what 2.9 knows by this one
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        return DistributedDataParallel(network, broadcast_buffers=False)  # they are the same tables everywhere


def no_sync(network: Callable[..., Any]) -> contextlib.AbstractContextManager[None]:
    """A context in which `backward` adds up gradients on each rank, as in all micro-batches of a step but the last."""
    if isinstance(network, DistributedDataParallel):
        return network.no_sync()
    return contextlib.nullcontext()


def _all_reduce(values: tuple[float, ...], operation: Any) -> list[float]:
    if world_size() == 1:
        return list(values)
    together = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(together, operation)
    return together.tolist()


def _attempt_key() -> str:
    return f"nanogpt_lite: folder of training {len(_groups)}"  # a program may train several times


def _env_int(name: str, default: int) -> int:
    """A number that torchrun gives each rank."""
    return int(os.environ.get(name, default))


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0][:300]
