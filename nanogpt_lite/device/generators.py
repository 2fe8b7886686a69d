"""Generators whose items are computed with changed settings of the process, such as signal handlers and threads.

A generator that changes a setting and is left before its end would leave the setting changed. So the setting is a
context, and the caller chooses how long it lasts.
"""

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, closing
from typing import Protocol, TypeVar

T = TypeVar("T")
MakeContext = Callable[[], AbstractContextManager[object]]


class Wrapper(Protocol[T]):
    """One of the two functions below."""

    def __call__(self, items: Generator[T, None, None], context: MakeContext, /) -> Generator[T, None, None]: ...


def context_per_item(items: Generator[T, None, None], context: MakeContext, /) -> Generator[T, None, None]:
    """The items of a generator. Each is computed within a new `context()`, which ends before the item is yielded.

    So nothing of it stays while the caller works with an item, or if it never takes the next one.
    """
    with closing(items):
        while True:
            with context():
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item


def context_for_all(items: Generator[T, None, None], context: MakeContext, /) -> Generator[T, None, None]:
    """The items of a generator, all within one `context()`, which lasts while the caller works with an item too."""
    with context():
        yield from items
