"""Writes the checkpoints of a training: at once, or with a GPU in a thread while it goes on.

What a checkpoint holds is in `state`, its file format in `checkpoint`, when one is written in `loop`.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from torch import Tensor

from nanogpt_lite.checkpoint import SUFFIX, checkpoint_file
from nanogpt_lite.checkpoint.metadata import CheckpointMetadata
from nanogpt_lite.tracking.records import CheckpointRecord
from nanogpt_lite.trainer import early_weights
from nanogpt_lite.trainer.state import TrainState, checkpoint_tensors, make_metadata, require_savable, save_state


def writes_in_background(state: TrainState) -> bool:
    """Whether a thread computes checksums and writes: with one GPU, which has to be copied from in any case.

    On a CPU the thread would take the time of training. Several ranks learn at once whether the main process failed.
    """
    return state.device.type == "cuda" and state.group.world_size == 1


class CheckpointWriter:
    """Writes checkpoints into a folder. Their records come out when the files are complete and durable.

    Use it as a context: at its end everything is written.
    """

    def __init__(self, state: TrainState, out_dir: Path) -> None:
        self._state, self._out_dir = state, out_dir
        self._executor = ThreadPoolExecutor(max_workers=1) if writes_in_background(state) else None
        self._pending: list[tuple[CheckpointRecord, Future[None]]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Wait for the files. `OSError` if one cannot be written, unless another error ends the block."""
        if self._executor is not None:
            self._executor.shutdown()
        if kind is None or kind is GeneratorExit:
            for _ in self.records():
                pass

    def save(self, *names: str) -> Iterator[CheckpointRecord]:
        """Write a checkpoint of the present state under each name, and yield the records of what is written already.

        `ExternalError`, and no file, if the loss is not finite. `OSError` if an earlier one, or without a thread this
        one, cannot be written.
        """
        yield from self.records()  # one copy of the state at a time takes memory
        if self._executor is None:
            for name in names:
                yield self._save_now(name)
            return
        require_savable(self._state)
        tensors = {name: tensor.detach().to("cpu", copy=True) for name, tensor in checkpoint_tensors(self._state)}
        metadata = make_metadata(self._state)
        previous: Future[None] | None = None
        for name in names:
            record = self._record(name)
            previous = self._executor.submit(_write_after, previous, Path(record.path), tensors, metadata)
            self._pending.append((record, previous))

    def save_early_weights(self) -> Iterator[CheckpointRecord]:
        """Write the weights of the network alone, at once, and yield their record after those of before.

        Nothing is written beyond the limit, see `early_weights.has_room`. `ExternalError`, and no file, if the loss is
        not finite. `OSError` if a file cannot be written.
        """
        yield from self.records()
        require_savable(self._state)
        record, group = self._record(early_weights.file_name(self._state.step)), self._state.group
        is_written = False
        with group.main_process_first():
            if group.is_main_process and early_weights.has_room(self._state, self._out_dir):
                checkpoint_file.write_checkpoint(Path(record.path), *early_weights.weights(self._state))
                is_written = True
        if is_written:
            yield record

    def has_written(self) -> bool:
        """Whether `records` has something to say without waiting."""
        return bool(self._pending) and self._pending[0][1].done()

    def records(self, *, wait: bool = True) -> Iterator[CheckpointRecord]:
        """The records of files that a thread has written since; with `wait`, of all. `OSError` if one failed."""
        while self.has_written() or (wait and self._pending):
            record, future = self._pending.pop(0)
            future.result()
            yield record

    def written_records(self) -> Iterator[CheckpointRecord]:
        """The records of all files that a thread has written since or is writing, but for those that failed."""
        while self._pending:
            record, future = self._pending.pop(0)
            if future.exception() is None:
                yield record

    def _save_now(self, name: str) -> CheckpointRecord:
        record, group = self._record(name), self._state.group
        with group.main_process_first():
            if group.is_main_process:
                save_state(self._state, Path(record.path))
        return record

    def _record(self, name: str) -> CheckpointRecord:
        return CheckpointRecord(step=self._state.step, name=name, path=str(self._out_dir / f"{name}{SUFFIX}"))


def _write_after(
    previous: Future[None] | None, path: Path, tensors: Mapping[str, Tensor], metadata: CheckpointMetadata
) -> None:
    """Write a checkpoint, unless the one before it failed: that error then. `last` names the step of a `best`."""
    if previous is not None:
        previous.result()  # it is done: the one thread writes in order
    checkpoint_file.write_checkpoint(path, tensors, metadata)
