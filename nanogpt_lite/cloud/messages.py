"""Error messages with options spelled as on Modal's command line: --out-dir instead of `out_dir`."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from nanogpt_lite.config.spelling import for_modal
from nanogpt_lite.errors import NanoGPTLiteError, UserError


@contextmanager
def modal_spelling() -> Iterator[None]:
    """Respell the options in a `NanoGPTLiteError` of the block; it stays of the same type.

    Also a decorator of functions that are not generators: `@modal_spelling()`.
    """
    try:
        yield
    except NanoGPTLiteError as error:
        respelled = type(error)(for_modal(str(error)))
        raise respelled.with_traceback(error.__traceback__) from error.__cause__


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Print a `NanoGPTLiteError` of the block as one line instead of a traceback, and exit as `nanogpt-lite` does.

    With status 2 after a mistake of the user, 1 after a failure outside the program. Also a decorator.
    """
    try:
        yield
    except NanoGPTLiteError as error:
        print(f"error: {for_modal(str(error))}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, UserError) else 1) from error
