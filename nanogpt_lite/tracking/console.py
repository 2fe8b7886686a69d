"""Sinks for records: what a person sees while it runs, and the metrics file.

Everything for people goes to standard error; results, which `cli` prints, go to standard output.
"""

import contextlib
import sys
import time
from typing import Any

from tqdm.std import tqdm as terminal_bar

from nanogpt_lite.tracking.records import (
    CheckpointRecord,
    DoneRecord,
    EvalRecord,
    MicroBatchRecord,
    Record,
    SampleRecord,
    StartRecord,
    StepRecord,
    StopReason,
)

SILENT_SECONDS = 30  # seconds without a line, where there is no bar


class _SafeStderr:
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
        self._stream: Any = _SafeStderr()
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
                if not self._interactive and time.monotonic() - self._told > SILENT_SECONDS:
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
                self.note(_footer(record))
            case CheckpointRecord():
                pass  # it is said in the last line where they are

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


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


def _footer(record: DoneRecord) -> str:
    reasons = {
        StopReason.MAX_ITERS: "all steps are done",
        StopReason.MAX_SECONDS: "max_seconds are over",
        StopReason.TARGET_LOSS: "target_loss is reached",
        StopReason.PATIENCE: "no new best for `patience` evaluations",
        StopReason.BATCHES: "there are no more batches",
        StopReason.INTERRUPTED: "asked to stop",
    }
    loss = record.best_val_loss
    best = "" if loss is None else f"best val loss {loss:.4f} at step {record.best_step}; "
    return f"stopped at step {record.step}, {reasons[record.reason]}: {best}{record.seconds:.0f} s of training"


def _count(number: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.2f}{unit}"
    return f"{number:.0f}"
