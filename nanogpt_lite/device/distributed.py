"""Data-parallel training: the process group, its collectives, and DistributedDataParallel.

`torchrun` starts one process, a rank, for each GPU or for each part of the CPU. Every rank trains the same network on
its share of the rows of each step. Control values (a request to stop, sums of losses) are reduced on the CPU with Gloo,
gradients on GPUs with NCCL.

A training joins its group with `process_group()` and passes the `ProcessGroup` on. With one process every method
returns at once, so that the callers need no second code path. What a rank computes is in `trainer`.
"""

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nanogpt_lite.device import connection
from nanogpt_lite.errors import ExternalError, UserError, first_line

if TYPE_CHECKING:  # some builds of PyTorch come without it
    from torch._C._distributed_c10d import ProcessGroup as TorchProcessGroup
    from torch._C._distributed_c10d import ReduceOp, Store

Forward = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""The network as a step calls it: inputs and targets (B, T) to logits (B, T, V) and the mean loss."""

# PyTorch keeps its process group in a global variable, so this state is per process too. One entry for each training
# that joined a group; their number is part of the keys in the store. After a training has ended well its entry is None.
# After an error it stays the group: PyTorch can hang if DistributedDataParallel holds the last reference to a group.
_groups: "list[TorchProcessGroup | None]" = []
# The store of the last training. Without torchrun's own store rank 0 serves it, and other ranks may still read it.
_stores: "list[Store]" = []


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that train one network together; without arguments, a single process.

    Every rank has to call the collective methods (`broadcast`, `all_reduce_…`, `main_process_first`, `wrap_ddp`,
    `load_attempt_dir`) in the same order.
    """

    rank: int = 0  # over all machines
    world_size: int = 1
    local_rank: int = 0  # on this machine
    local_world_size: int = 1
    # torchrun's store outlives an attempt: torchrun starts all ranks again when one dies
    store: "Store | None" = field(default=None, repr=False, compare=False)
    attempt_dir_key: str = ""
    attempt_store: "Store | None" = field(default=None, repr=False, compare=False)  # the part for this attempt

    @property
    def is_main_process(self) -> bool:
        """Whether this is rank 0, which alone writes files."""
        return self.rank == 0

    def local_device(self) -> str:
        """The GPU of this rank; with one process "cuda", the current GPU. `UserError` if there are too few GPUs."""
        if self.world_size == 1:
            return "cuda"
        gpus = torch.cuda.device_count()
        if self.local_world_size > gpus:
            raise UserError(
                f"{self.local_world_size} ranks were started on a machine with {gpus} GPUs, and each needs its own; "
                f"start {gpus} ranks, or give `device='cpu'`"
            )
        return f"cuda:{self.local_rank}"

    def rank_slice(self, rows: int) -> slice:
        """This rank's share of the `rows` of a step."""
        share = rows // self.world_size
        return slice(self.rank * share, (self.rank + 1) * share)

    def broadcast(self, text: str) -> str:
        """The text of the main process."""
        if self.world_size == 1:
            return text
        encoded = torch.tensor(list(text.encode("utf-8", "surrogateescape")), dtype=torch.uint8)
        length = torch.tensor(len(encoded))
        dist.broadcast(length, 0)
        if not self.is_main_process:
            encoded = torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(encoded, 0)
        return bytes(encoded.tolist()).decode("utf-8", "surrogateescape")

    def all_reduce_max(self, *values: float) -> list[float]:
        """The maximum over the ranks of each of the values."""
        return self._all_reduce(values, dist.ReduceOp.MAX) if self.world_size > 1 else list(values)

    def all_reduce_sum(self, *values: float) -> list[float]:
        """The sum over the ranks of each of the values."""
        return self._all_reduce(values, dist.ReduceOp.SUM) if self.world_size > 1 else list(values)

    def all_reduce_mean(self, tensor: Tensor) -> Tensor:
        """The mean of the ranks' tensors, computed in place on their device."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
            tensor /= self.world_size
        return tensor

    @contextlib.contextmanager
    def main_process_first(self) -> Iterator[None]:
        """The main process runs the block first, the others after it. If it fails there, they raise an error too."""
        if self.world_size == 1:
            yield
        elif self.is_main_process:
            try:
                yield
            except BaseException as error:
                self.broadcast(f"{type(error).__name__} {error}")
                raise
            self.broadcast("")
        else:
            error_type, _, message = self.broadcast("").partition(" ")
            if error_type == "UserError":
                raise UserError(message)
            if error_type:
                raise ExternalError(f"rank 0 has failed ({message or 'interrupted'}); fix that, and start again")
            yield

    def check_connection(self, device: torch.device) -> None:
        """Wait for all ranks, and add up a number over them on their devices. `ExternalError` if that fails."""
        if self.attempt_store is not None:
            connection.wait_for_ranks(self.attempt_store, self.rank, self.world_size)
            connection.require_sum(device, self.rank, self.world_size)

    def wrap_ddp(self, network: Forward, device: torch.device) -> Forward:
        """The network with the weights of rank 0, whose `backward` gives each rank the mean gradient."""
        if self.world_size == 1:
            return network
        assert isinstance(network, nn.Module)
        with warnings.catch_warnings():  # PyTorch 2.13 renamed the argument; 2.9 only has this name
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            return DistributedDataParallel(network, broadcast_buffers=False)  # all ranks compute the same buffers

    def load_attempt_dir(self) -> str:
        """The run's folder that an earlier attempt of this job saved, or an empty text."""
        if self.store is None:
            return ""
        is_known = self.is_main_process and self.store.check([self.attempt_dir_key])
        return self.broadcast(self.store.get(self.attempt_dir_key).decode() if is_known else "")

    def save_attempt_dir(self, path: str) -> None:
        """Tell later attempts of this job the folder of the run that this one trains."""
        if self.store is not None:
            self.store.set(self.attempt_dir_key, path)

    def _all_reduce(self, values: tuple[float, ...], operation: "ReduceOp.RedOpType") -> list[float]:
        reduced = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(reduced, operation)
        return reduced.tolist()


SINGLE_PROCESS = ProcessGroup()


@contextlib.contextmanager
def process_group() -> Iterator[ProcessGroup]:
    """Join the processes that torchrun started, and leave them at the end; without torchrun, a single process.

    `ExternalError` if the other ranks cannot be reached, or if the connection to them is lost. After an error the group
    is not left, since other ranks may be waiting: this process cannot train again, and should end with `hard_exit`.
    """
    world_size = _env_int("WORLD_SIZE", 1)
    if world_size == 1:
        yield SINGLE_PROCESS
        return
    group = _join(world_size)
    try:
        yield group
    except RuntimeError as error:
        if not isinstance(error, ExternalError) and (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise ExternalError(
                f"the connection between the ranks was lost, perhaps because one has ended ({first_line(error)}); "
                "start them again, with `init_from='resume'` if there is a checkpoint"
            ) from error
        raise
    dist.destroy_process_group()  # not after an error: NCCL would wait for ranks that wait for this one
    _groups[-1] = None


def no_sync(network: Forward) -> contextlib.AbstractContextManager[None]:
    """A context in which `backward` does not average gradients over ranks: all micro-batches of a step but the last."""
    if isinstance(network, DistributedDataParallel):
        return network.no_sync()
    return contextlib.nullcontext()


def launched_rank() -> int:
    """The rank that torchrun gave this process, known before it joins its group; 0 without torchrun."""
    return 0 if _env_int("WORLD_SIZE", 1) == 1 else _env_int("RANK", 0)  # some clusters set RANK without WORLD_SIZE


def launched_as_main_process() -> bool:
    """Whether this process is rank 0, which alone prints and writes; known before it joins its group."""
    return launched_rank() == 0


def hard_exit(status: int) -> None:
    """End this process at once if it ever joined a group: PyTorch's threads may abort or hang an ordinary exit."""
    if _groups:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _join(world_size: int) -> ProcessGroup:
    try:
        store, rank, world_size = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
        # torchrun keeps one store for all attempts, which still holds the addresses of ranks that have ended
        prefix = f"attempt {_env_int('TORCHELASTIC_RESTART_COUNT', 0)}, training {len(_groups)}"
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        prefixed = dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=prefixed, rank=rank, world_size=world_size)
    except (ValueError, RuntimeError) as error:
        raise ExternalError(
            f"WORLD_SIZE={world_size} says that this is one of several processes, and the others cannot be reached "
            f"({first_line(error)}); start them with torchrun, or unset WORLD_SIZE"
        ) from error
    _groups.append(dist.group.WORLD)
    _stores[:] = [store]
    return ProcessGroup(
        rank=rank,
        world_size=world_size,
        local_rank=_env_int("LOCAL_RANK", 0),
        local_world_size=_env_int("LOCAL_WORLD_SIZE", 1),
        store=store,
        attempt_store=prefixed,
        attempt_dir_key=f"nanogpt_lite: folder of training {len(_groups)}",
    )


def _env_int(name: str, default: int) -> int:
    return int(os.environ.get(name, default))
