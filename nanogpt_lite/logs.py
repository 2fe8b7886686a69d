"""Sinks for records: what a person sees while it runs, and the metrics file.

Everything for people goes to standard error; results, which `cli` prints, go to standard output.
"""

import contextlib
import errno
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any, NoReturn, Protocol

from tqdm.std import tqdm as terminal_bar

from nanogpt_lite import files
from nanogpt_lite.metrics import (
    CheckpointRecord,
    DoneRecord,
    EvalRecord,
    MicroBatchRecord,
    Record,
    SampleRecord,
    StartRecord,
    StepRecord,
)

FIRST = b'{"kind"'  # with which every line of a metrics file begins
QUIET_FOR = 30  # seconds without a line, where there is no bar


class Sink(Protocol):
    """Something that takes the records of a run."""

    def write(self, record: Record) -> None:
        """Take one more record."""

    def close(self) -> None:
        """Nothing follows."""


class _Lasting:
    """Standard error for as long as somebody reads it: a run outlives its log."""

    def __init__(self) -> None:
        self._stream = sys.stderr

    def write(self, text: str) -> int:
        if self._stream is not None:  # as in programs with windows alone
            with contextlib.suppress(OSError, ValueError):
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            with contextlib.suppress(OSError, ValueError):
                self._stream.flush()

    def isatty(self) -> bool:
        try:
            return bool(self._stream.isatty())
        except (ValueError, AttributeError):  # it is closed, or there is none
            return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Console:
    """Progress for people: a bar with loss, rate and time left on a terminal or in a notebook, lines elsewhere."""

    def __init__(self, bar: bool | None = None, *, silent: bool = False) -> None:
        self._stream: Any = _Lasting()
        self._told = time.monotonic()  # when there was the last line
        notebook = "ipykernel" in sys.modules
        interactive = (notebook or self._stream.isatty()) if bar is None else bar
        self._interactive, self._silent = interactive and not silent, silent
        self._bar: Any = None
        self._make_bar: Any = terminal_bar
        if notebook:
            from tqdm.auto import tqdm as notebook_bar  # a widget where the notebook can show one

            self._make_bar = notebook_bar

    def note(self, text: str) -> None:
        """A line for the person who looks on."""
        if self._silent:
            return
        terminal_bar.write(text, file=self._stream)
        self._stream.flush()
        self._told = time.monotonic()

    def report(self, what: str, done: int, total: int | None) -> None:
        """Show how far a long reading, writing or download is, in bytes."""
        if self._interactive:
            if self._bar is None or self._bar.desc != what:
                self.close()
                self._bar = self._make_bar(
                    desc=what, total=total, unit="B", unit_scale=True, leave=False, delay=0.5, file=self._stream
                )
            self._bar.update(done - self._bar.n)

    def write(self, record: Record) -> None:
        """Show one record."""
        match record:
            case StartRecord():
                self.close()
                self.note(_header(record))
                self._bar = self._make_bar(
                    total=record.max_iters,
                    initial=record.step,
                    unit="step",
                    disable=not self._interactive,
                    file=self._stream,
                    dynamic_ncols=True,
                )
            case StepRecord():
                shown = f"loss {record.loss:.4f}, {_count(record.tokens_per_second)} tokens/s"
                if record.mfu is not None:
                    shown += f", MFU {record.mfu:.1%}"
                if self._bar is not None:
                    self._bar.update(record.step - self._bar.n)
                    self._bar.set_postfix_str(shown)
                if not self._interactive and time.monotonic() - self._told > QUIET_FOR:
                    self.note(f"step {record.step}: {shown}")
            case EvalRecord():
                best = ", the best so far" if record.is_best else f" (best {record.best_val_loss:.4f})"
                self.note(
                    f"step {record.step}: train loss {record.train_loss:.4f}, val loss {record.val_loss:.4f}{best}"
                    f", {record.seconds:.0f} s"
                )
            case MicroBatchRecord():
                self.note(
                    f"step {record.step}: out of memory; going on with {record.rows} rows of the batch at a time, "
                    "which gives the same result (but for dropout's masks)"
                )
            case SampleRecord():
                self.note(f"--- sample at step {record.step}\n{record.text}\n---")
            case DoneRecord():
                if self._bar is not None:
                    self._bar.update(record.step - self._bar.n)
                self.close()
                self.note(_ending(record))
            case CheckpointRecord():
                pass  # it is said in the last line where they are

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class MetricsFile:
    """One JSON object a line. A line is written by one call; what does not end with a newline is no line yet."""

    def __init__(self, path: Path, *, keep_until: int = -1) -> None:
        """Append to what the file holds up to step `keep_until`; -1: begin anew."""
        kept = [record for record in read_metrics(path) if record["step"] <= keep_until]
        with files.atomic(path) as temporary:
            temporary.write_bytes(b"".join(map(_line, kept)))
        self._path = path
        self._file = path.open("ab", buffering=0)

    def write(self, record: Record) -> None:
        """Append one record. `OSError` if the disk is full; no part of the line is left then."""
        line = _line(record.to_json())
        handle = self._file.fileno()
        try:
            written = os.write(handle, line)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        if written < len(line):
            os.ftruncate(handle, os.fstat(handle).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))

    def close(self) -> None:
        """Nothing follows."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records in a metrics file, oldest first; none if there is no file. What is no whole record does not count."""
    records = []
    if path.is_file():
        for line in path.read_bytes().splitlines():
            try:
                record = json.loads(line, parse_constant=_refuse, parse_float=_finite)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict) and _is_record(record):
                records.append(record)
    return records


def _is_record(content: dict[str, Any]) -> bool:
    """Whether a JSON object has what is drawn and compared of a record of its kind, in numbers."""
    needed = {"step": ("loss", "learning_rate"), "eval": ("val_loss", "best_val_loss")}
    names = needed.get(str(content.get("kind")), ())
    numbers = all(type(content.get(name)) in (int, float) for name in names)
    return "kind" in content and type(content.get("step")) is int and numbers


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number of JSON")


def _finite(digits: str) -> float:
    return float(digits) if math.isfinite(float(digits)) else _refuse(digits)


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record, allow_nan=False).encode() + b"\n"


def _header(record: StartRecord) -> str:
    if record.step >= record.max_iters:
        return f"{record.out_dir} has its {record.max_iters} steps; to go on, give more --max_iters"
    begin = f"from step {record.step} " if record.step else ""
    threads = f"{record.threads} thread{'s' if record.threads > 1 else ''}"
    of_each = f" on each of {record.ranks} ranks" if record.ranks > 1 else ""
    of_each += " (dropout masks of their own)" if record.ranks > 1 and record.dropout else ""
    return (
        f"training {record.out_dir} {begin}to step {record.max_iters}: {_count(record.parameters)} parameters, "
        f"{record.vocab_size:,} symbols ({record.tokenizer}), {record.tokens_per_step:,} tokens a step, "
        f"{record.epochs:.1f} epochs; {record.device}, {record.dtype}, {threads}{of_each}"
    )


def _ending(record: DoneRecord) -> str:
    reasons = {
        "max_iters": "all steps are done",
        "max_seconds": "max_seconds are over",
        "target_loss": "target_loss is reached",
        "patience": "no new best for `patience` evaluations",
        "batches": "there are no more batches",
        "interrupted": "asked to stop",
    }
    loss = record.best_val_loss
    best = "" if loss is None else f"best val loss {loss:.4f} at step {record.best_step}; "
    return f"stopped at step {record.step}, {reasons[record.reason]}: {best}{record.seconds:.0f} s of training"


def _count(number: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.2f}{unit}"
    return f"{number:.0f}"
