"""The connection between ranks, checked before they train, so that a step never waits for ever.

How ranks join and what they exchange is in `distributed`.
"""

import threading
import warnings
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from nanogpt_lite.errors import ExternalError, first_line

if TYPE_CHECKING:  # some builds of PyTorch come without it
    from torch._C._distributed_c10d import Store

# Until all ranks are about to train: one may verify a large dataset on a slow disk meanwhile, or load a large network.
ARRIVAL_TIMEOUT = timedelta(seconds=600)
WARNING_DELAY = timedelta(seconds=120)  # until a rank that is missing is named
REDUCE_TIMEOUT = timedelta(seconds=60)


def wait_for_ranks(store: "Store", rank: int, world_size: int) -> None:
    """Wait until all ranks have called this. After a while, a warning names those that are missing.

    `ExternalError` names them at the end of the time.
    """
    keys = [f"rank {number} is ready" for number in range(world_size)]
    store.set(keys[rank], "")
    missing = _wait(store, keys, WARNING_DELAY)
    if missing and rank == min(set(range(world_size)).difference(missing)):  # one of those that wait
        warnings.warn(
            f"{_names(missing)} did not begin within {WARNING_DELAY.total_seconds():.0f} seconds after rank {rank}, "
            f"which waits for {ARRIVAL_TIMEOUT.total_seconds():.0f} seconds",
            stacklevel=2,
        )
    if missing and (missing := _wait(store, keys, ARRIVAL_TIMEOUT - WARNING_DELAY)):
        raise ExternalError(
            f"{_names(missing)} did not begin within {ARRIVAL_TIMEOUT.total_seconds():.0f} seconds after rank {rank}; "
            "look for its error in the output above, or for what makes it so slow, such as the disk with its data, and "
            "start all ranks again"
        )


def require_sum(device: torch.device, rank: int, world_size: int) -> None:
    """Add up a number over the ranks on their devices, as gradients will be. `ExternalError` names a likely reason."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if problem := _find_problem_of_sum(device, world_size):
        raise ExternalError(
            f"rank {rank} cannot exchange gradients with the other ranks, which are all there ({problem}); "
            f"{_connection_advice(device)}"
        )


def _wait(store: "Store", keys: list[str], timeout: timedelta) -> list[int]:
    """The ranks that are still missing after a time."""
    try:
        store.wait(keys, timeout)
    except RuntimeError:
        return [rank for rank, key in enumerate(keys) if not store.check([key])]
    return []


def _names(ranks: list[int]) -> str:
    return " and ".join(f"rank {rank}" for rank in ranks)


def _find_problem_of_sum(device: torch.device, world_size: int) -> str:
    """What is wrong with a sum over the ranks; empty if nothing is.

    In a thread that is left alone if it hangs: NCCL first connects the GPUs, which no time-out of PyTorch limits.
    """
    problems = [f"no answer within {REDUCE_TIMEOUT.seconds} seconds"]

    def add_up() -> None:
        try:
            count = torch.ones((), device=device)
            dist.all_reduce(count)
            total = count.item()
        except RuntimeError as error:
            problems.append(first_line(error))
        else:
            problems.append("" if total == world_size else f"the sum of {world_size} ones is {total}")

    thread = threading.Thread(target=add_up, daemon=True)
    thread.start()
    thread.join(REDUCE_TIMEOUT.total_seconds())
    return problems[-1]


def _connection_advice(device: torch.device) -> str:
    if device.type != "cuda":
        return "check the network between the machines, and set GLOO_SOCKET_IFNAME to its interface"
    return (
        "set NCCL_DEBUG=INFO to see why. Often it is direct access between GPUs (set NCCL_P2P_DISABLE=1), too little "
        "shared memory in a container (start it with --shm-size=1g), or the network (set NCCL_SOCKET_IFNAME)"
    )
