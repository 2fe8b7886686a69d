"""The ranks of one training: processes that share the rows of each step, one for each GPU or part of the CPU.

`torchrun` starts them, and the environment tells each its number. A rank goes the same road as a process that trains
alone, and calls these functions where it needs the others; for a process alone they do nothing. Small things, such
as "somebody asked to stop", travel between the CPUs, gradients between the GPUs where there are any.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nanogpt_lite.errors import UserError, WorldError

_groups: list[Any] = []  # never let go: PyTorch can hang when DistributedDataParallel is the last to hold its group

LONGEST_WAIT = timedelta(hours=6)  # of one rank for another: the first one may have a long text to prepare


def rank() -> int:
    """The number of this process among all of this training, on all machines; the first is 0."""
    return int(os.environ.get("RANK", "0"))


def size() -> int:
    """How many ranks there are; 1 for a process alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the rank that writes, and talks."""
    return rank() == 0


def restarts() -> int:
    """How many times torchrun has started the ranks anew, because one of them died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def own_gpu() -> str:
    """The GPU of this rank; "cuda", the current one, for a process alone."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if size() > 1 else "cuda"


def own_share(rows: int) -> slice:
    """Which of the rows of a step are this rank's."""
    share = rows // size()
    return slice(rank() * share, (rank() + 1) * share)


def require_equal_shares(rows: int) -> None:
    """`UserError` if the rows of a step cannot be shared equally."""
    if rows % size():
        raise UserError(
            f"a step of {rows} rows (batch_size * gradient_accumulation_steps) cannot be shared equally by {size()} "
            f"ranks; start a number of ranks that divides it, or give --batch_size {-(-rows // size()) * size()}"
        )


@contextlib.contextmanager
def join() -> Iterator[None]:
    """Meet the other ranks, and part at the end. `WorldError` if they cannot be found, or are lost meanwhile."""
    if size() == 1:
        yield
        return
    try:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        # torchrun keeps one store for all attempts, in which the addresses of ranks that are gone would be found
        store, own_rank, count = next(dist.rendezvous("env://", timeout=LONGEST_WAIT))  # type: ignore[attr-defined]
        store = dist.PrefixStore(f"attempt {restarts()}", store)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=own_rank, world_size=count, timeout=LONGEST_WAIT)
        _groups.append(dist.group.WORLD)
    except (ValueError, RuntimeError) as error:
        raise WorldError(
            f"WORLD_SIZE={size()} says that this is one of several processes, and the others cannot be found "
            f"({error}); start them with torchrun, or unset WORLD_SIZE"
        ) from error
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise WorldError("another rank has ended, and this one cannot go on alone") from error
        raise
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def first_goes_ahead() -> Iterator[None]:
    """The first rank goes through the block alone, and the others after it. If it fails there, so do they."""
    if size() == 1:
        yield
        return
    if not is_first():
        kind, _, message = from_first("").partition(" ")
        if kind:
            raise (UserError if kind == "UserError" else WorldError)(message)
        yield
        return
    try:
        yield
    except BaseException as error:
        from_first(f"{type(error).__name__} {error}")
        raise
    from_first("")


def from_first(text: str) -> str:
    """The text that the first rank has."""
    if size() == 1:
        return text
    sent = torch.tensor(list(text.encode("utf-8", "surrogateescape")), dtype=torch.uint8)
    length = torch.tensor(len(sent))
    dist.broadcast(length, 0)
    if not is_first():
        sent = torch.empty(int(length), dtype=torch.uint8)
    dist.broadcast(sent, 0)
    return bytes(sent.tolist()).decode("utf-8", "surrogateescape")


def greatest(*values: float) -> list[float]:
    """For each of the values, the greatest that a rank has."""
    return _over_all(values, dist.ReduceOp.MAX)


def total(*values: float) -> list[float]:
    """For each of the values, the sum over the ranks."""
    return _over_all(values, dist.ReduceOp.SUM)


def mean(value: Tensor) -> Tensor:
    """The mean of the ranks' tensors, on the device where they are."""
    if size() > 1:
        dist.all_reduce(value)
        value /= size()
    return value


def parallel(network: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """The network, with the weights of the first rank, so that after `backward` each rank has the mean gradient."""
    if size() == 1:
        return network
    assert isinstance(network, nn.Module)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return DistributedDataParallel(network)


def gradients_stay(network: Callable[..., Any]) -> contextlib.AbstractContextManager[None]:
    """A context in which `backward` adds up gradients on each rank, as in all micro-batches of a step but the last."""
    if isinstance(network, DistributedDataParallel):
        return network.no_sync()
    return contextlib.nullcontext()


def _over_all(values: tuple[float, ...], operation: Any) -> list[float]:
    if size() == 1:
        return list(values)
    together = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(together, operation)
    return together.tolist()
