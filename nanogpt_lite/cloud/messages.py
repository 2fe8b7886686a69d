"""Errors that users see: how they leave a container, and how they are shown, with options spelled as on Modal."""

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypedDict, TypeVar

from nanogpt_lite.config.spelling import for_modal
from nanogpt_lite.errors import ExternalError, NanoGPTLiteError, UserError

P = ParamSpec("P")
T = TypeVar("T")


class ErrorResult(TypedDict):
    """What a Function returns instead of its result."""

    error: str
    kind: str  # UserError or ExternalError


def errors_as_results(function: Callable[P, T]) -> Callable[P, T | ErrorResult]:
    """Decorate a Function, so that it returns a `NanoGPTLiteError` instead of raising it.

    Modal starts a call again that has raised, up to its `retries`: it cannot know that a mistake in the options, or a
    loss that is not finite, comes back every time. `result_or_error` raises it where the result arrives.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T | ErrorResult:
        try:
            with modal_spelling():
                return function(*args, **kwargs)
        except NanoGPTLiteError as error:
            return {"error": str(error), "kind": "UserError" if isinstance(error, UserError) else "ExternalError"}

    return call


def result_or_error(result: T | ErrorResult) -> T:
    """The result of a Function. `UserError` or `ExternalError` if it returned one."""
    if isinstance(result, dict) and set(result) == {"error", "kind"}:
        kind = UserError if result["kind"] == "UserError" else ExternalError
        raise kind(str(result["error"]))
    return result  # type: ignore[return-value]  # it is no ErrorResult


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
