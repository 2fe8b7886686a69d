"""Error messages with options spelled as on Modal's command line: --out-dir instead of `out_dir`."""

from collections.abc import Iterator
from contextlib import contextmanager

from nanogpt_lite.config.spelling import for_modal
from nanogpt_lite.errors import NanoGPTLiteError


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
