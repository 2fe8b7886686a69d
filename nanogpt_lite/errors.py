"""The exceptions that users see. Each message says what is wrong, why, and what to do.

Any other exception that leaves the library is a bug in it, and keeps its traceback.
"""

import signal


class NanoGPTLiteError(Exception):
    """Base class of the errors that this library raises on purpose: `except NanoGPTLiteError` catches all of them.

    `Interrupted` is none of them: it is a KeyboardInterrupt, so that code which handles errors does not swallow Ctrl-C.
    """


class UserError(NanoGPTLiteError, ValueError):
    """A mistake of the user: an invalid option, an unusable text, a missing file. Exit status 2."""


class ExternalError(NanoGPTLiteError, RuntimeError):
    """A failure outside the program: no network, no memory left, a loss that is not finite. Exit status 1."""


WorldError = ExternalError  # the name in version 0.1


def shorten(text: str, length: int = 200) -> str:
    """The first `length` characters of a text on one line, for a message that repeats what a file or a user gave."""
    line = " ".join(text.splitlines())
    return line if len(line) <= length else f"{line[:length]}…"


def first_line(error: Exception | str) -> str:
    """The first line of another library's error, at most 200 characters; its type if it has no message.

    With the second line if the first announces it, as PyTorch's compiler does: "backend='inductor' raised:".
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return (" ".join(lines[:2]) if lines[0].endswith(":") else lines[0])[:200]


class Interrupted(KeyboardInterrupt):
    """A signal stopped the training after its state was saved. Exit status 128 + `signum`.

    `out_dir` is the folder of the run, from which training can continue; None if the caller knows it anyway.
    """

    def __init__(self, signum: int, message: str, *, out_dir: str | None = None) -> None:
        super().__init__(message)
        self.signum = signal.Signals(signum)
        self.out_dir = out_dir
