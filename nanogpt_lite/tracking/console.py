"""The sink that shows progress: a bar on a terminal or in a notebook, lines elsewhere.

Progress and warnings go to standard error. Results go to standard output: see `cli`.
"""

import contextlib
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from tqdm.std import tqdm as terminal_bar

from nanogpt_lite.tracking.number_format import COUNT_SUFFIXES, format_number
from nanogpt_lite.tracking.records import (
    CheckpointRecord,
    DoneRecord,
    EvalRecord,
    MicroBatchRecord,
    Record,
    ResultRecord,
    SampleRecord,
    StartRecord,
    StepRecord,
    StopReason,
)

SILENT_SECONDS = 30  # without a bar, a step is printed after this many seconds without output


class _SafeStderr:
    """Standard error, but writing never fails: a run continues after its terminal or pipe is closed."""

    def __init__(self) -> None:
        self._stream = sys.stderr

    def write(self, text: str) -> int:
        if self._stream is not None:  # None under pythonw, which has no console
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
        except (ValueError, AttributeError):  # closed, or None
            return False

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


class Console:
    """Shows records and messages: a bar (loss, rate, time left) on a terminal or in a notebook, lines elsewhere."""

    def __init__(self, bar: bool | None = None, *, silent: bool = False, spell: Callable[[str], str] = str) -> None:
        """`bar` overrides the detection of a terminal or notebook; `silent` shows nothing at all.

        `spell` respells the options in messages for the user (see `config.spelling`).
        """
        self._spell = spell
        self._stream = _SafeStderr()
        self._last_output = time.monotonic()
        notebook = "ipykernel" in sys.modules
        interactive = (notebook or self._stream.isatty()) if bar is None else bar
        self._interactive, self._silent = interactive and not silent, silent
        self._bar: terminal_bar[NoReturn] | None = None
        self._make_bar: Callable[..., terminal_bar[NoReturn]] = terminal_bar
        if notebook:
            from tqdm.auto import tqdm as notebook_bar  # a widget where the notebook can show one

            self._make_bar = notebook_bar

    def note(self, text: str) -> None:
        """Print a line, with the options in it spelled as `spell` does."""
        self._print(self._spell(text))

    def _print(self, text: str) -> None:
        if self._silent:
            return
        terminal_bar.write(text, file=self._stream)
        self._stream.flush()
        self._last_output = time.monotonic()

    def report(self, task: str, done: int, total: int | None) -> None:
        """Show the progress of a long read, write or download, in bytes."""
        if self._interactive:
            if self._bar is None or self._bar.desc != task:
                self.close()
                self._bar = self._make_bar(
                    desc=task, total=total, unit="B", unit_scale=True, leave=False, delay=0.5, file=self._stream
                )
            self._bar.update(done - self._bar.n)

    def write(self, record: Record) -> None:
        """Show one record."""
        match record:
            case StartRecord():
                self.close()
                self.note(_header(record))
                self._open_bar(record)
            case StepRecord():
                self._show_step(record)
            case EvalRecord():
                self.note(_describe_eval(record))
            case MicroBatchRecord():
                self.note(
                    f"step {record.step}: out of memory; continuing with micro-batches of {record.rows} rows, "
                    "which give the same result, except for dropout masks"
                )
            case SampleRecord():
                self._print(f"--- sample at step {record.step}\n{record.text}\n---")
            case ResultRecord():
                self.close()
                for line in format_result(record):
                    self.note(line)
            case DoneRecord():
                if self._bar is not None:
                    self._bar.update(record.step - self._bar.n)
                self.close()
                self.note(_footer(record))
            case CheckpointRecord():
                pass  # written after an evaluation, which is shown

    def _open_bar(self, record: StartRecord) -> None:
        self._bar = self._make_bar(
            total=record.max_iters,
            initial=record.step,
            unit="step",
            disable=not self._interactive,
            file=self._stream,
            dynamic_ncols=True,
        )

    def _show_step(self, record: StepRecord) -> None:
        status = f"loss {record.loss:.4f}, {_format_count(record.tokens_per_second)} tokens/s"
        if record.mfu is not None:
            status += f", MFU {record.mfu:.1%}"
        if self._bar is not None:
            self._bar.update(record.step - self._bar.n)
            self._bar.set_postfix_str(status)
        if not self._interactive and time.monotonic() - self._last_output > SILENT_SECONDS:
            self.note(f"step {record.step}: {status}")

    def close(self) -> None:
        """Close the bar, if one is shown."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _header(record: StartRecord) -> str:
    if record.step >= record.max_iters:
        return f"{record.out_dir} already has its {record.max_iters} steps; to train longer, give a larger `max_iters`"
    if record.is_finished:
        return f"{record.out_dir} is at step {record.step} of {record.max_iters}, and takes no more steps"
    start = f"from step {record.step} " if record.step else ""
    threads = f"{record.threads} thread{'s' if record.threads > 1 else ''}"
    ranks = f" on each of {record.ranks} ranks" if record.ranks > 1 else ""
    ranks += " (dropout masks differ from those of one process)" if record.ranks > 1 and record.dropout else ""
    return (
        f"training {record.out_dir} {start}to step {record.max_iters}: {_format_count(record.parameters)} parameters, "
        f"vocabulary of {record.vocab_size:,} tokens ({record.tokenizer}), {record.tokens_per_step:,} tokens per step, "
        f"{record.epochs:.1f} epochs; {record.device}, {record.dtype}, {threads}{ranks}"
    )


def _describe_eval(record: EvalRecord) -> str:
    best = ", best so far" if record.is_best else f" (best {record.best_val_loss:.4f})"
    per_char = record.val_loss_per_char
    per_char_text = "" if per_char in (None, record.val_loss) else f", per character {per_char:.4f}"
    alone = record.network_val_loss
    alone_text = "" if alone is None else f", of the network alone {alone:.4f}"
    return (
        f"step {record.step}: train loss {record.train_loss:.4f}, val loss {record.val_loss:.4f}{best}"
        f"{per_char_text}{alone_text}, {record.seconds:.0f} s"
    )


def format_result(record: ResultRecord) -> list[str]:
    """The result of a training, in lines."""
    is_whole = record.val_tokens >= record.split_tokens
    part = "" if is_whole else f" ({record.val_tokens:,} of the {record.split_tokens:,} val tokens)"
    return [
        f"val loss {record.val_loss:.4f}{part}: perplexity {record.perplexity:.2f} per token, "
        f"{record.bits_per_character:.3f} bits per character, {record.bits_per_byte:.3f} per byte",
        f"n-gram models of this text: unigram {record.unigram:.4f}, bigram {record.bigram:.4f}, "
        f"5-gram {record.five_gram:.4f}",
        record.verdict,
    ]


def _footer(record: DoneRecord) -> str:
    reasons = {
        StopReason.MAX_ITERS: "all steps are done",
        StopReason.MAX_SECONDS: "max_seconds are over",
        StopReason.TARGET_LOSS: "target_loss is reached",
        StopReason.PATIENCE: "no better val loss for `patience` evaluations, so more steps would hardly help "
        "(`patience=0` goes on)",
        StopReason.BATCHES: "there are no more batches",
        StopReason.INTERRUPTED: "asked to stop",
    }
    loss = record.best_val_loss
    best = "" if loss is None else f"best val loss {loss:.4f} at step {record.best_step}; "
    return f"stopped at step {record.step}, {reasons[record.reason]}: {best}{record.seconds:.0f} s of training"


def _format_count(number: float) -> str:
    return format_number(number, digits=4, suffixes=COUNT_SUFFIXES)
