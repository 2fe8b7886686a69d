"""What a fuzz target is, and how one input is tried.

Input number k of a target under a seed depends on (seed, name of the target, k) alone.
"""

import os
import random
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import nanogpt_lite as ng
from fuzzing.mutations import EXECUTED

MAX_MESSAGE = 2000  # characters
Input = TypeVar("Input")


class Target(ABC, Generic[Input]):
    """A part of the program that reads what others have written. `__init__` makes its files in the current folder."""

    name: ClassVar[str]
    share: ClassVar[int]  # of 1000 inputs of a campaign; slow targets have a small one

    @abstractmethod
    def generate(self, rng: random.Random) -> Input:
        """An input. It depends on `rng` alone, not on the inputs before it."""

    @abstractmethod
    def run(self, example: Input) -> None:
        """Use the input. It may be accepted, or refused with a `NanoGPTLiteError`; all else is a failure."""


def make_input(target: Target[Input], seed: int, number: int) -> Input:
    """Input `number` of a target."""
    return target.generate(random.Random(f"{seed}/{target.name}/{number}"))


def try_input(target: Target[Input], example: Input) -> bool:
    """Whether the input is accepted; False if it is refused with a clear error.

    Any other exception is a failure. So is a warning (except a `UserWarning`, which may be what the user needs), a
    message of more than two lines or `MAX_MESSAGE` characters, and the execution of a pickle in the input.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", UserWarning)
            target.run(example)
        accepted = True
    except ng.NanoGPTLiteError as error:
        message = str(error)
        assert message, "an error without a message"
        assert message.count("\n") <= 1, f"a message of more than two lines: {message[:MAX_MESSAGE]}"
        assert len(message) <= MAX_MESSAGE, f"a message of {len(message)} characters: {message[:MAX_MESSAGE]}"
        accepted = False
    finally:
        executed = EXECUTED.exists()
        EXECUTED.unlink(missing_ok=True)
    assert not executed, "code in the input was executed"
    return accepted


class Snapshot:
    """The files below a folder, as they are now. `restore` undoes what an input has changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.contents = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
        self._times = {path: path.stat().st_mtime_ns for path in self.contents}

    def names(self) -> list[str]:
        """The paths of the files, relative to the folder."""
        return [str(path.relative_to(self.folder)) for path in self.contents]

    def content(self, name: str) -> bytes:
        """The content of a file."""
        return self.contents[self.folder / name]

    def restore(self, changed: Mapping[str, bytes] | None = None) -> None:
        """Make the files what they were, with their times of modification; then write those in `changed`."""
        for path in sorted(self.folder.rglob("*"), reverse=True):  # what is in a folder comes before the folder
            if path.is_symlink() or (path.is_file() and path not in self.contents):
                path.unlink()
            elif path.is_dir() and not any(path in kept.parents for kept in self.contents):
                path.rmdir()
        for path, content in self.contents.items():
            if not path.is_file() or path.stat().st_mtime_ns != self._times[path] or path.read_bytes() != content:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                os.utime(path, ns=(self._times[path], self._times[path]))
        for name, content in (changed or {}).items():
            (self.folder / name).write_bytes(content)
