"""The exceptions that reach a user: each message says what is wrong, why, and what to do.

Everything else that escapes from the library is a bug of ours and keeps its traceback.
"""

import signal


class UserError(ValueError):
    """A mistake of the user: a wrong option, an unusable text, a missing file. Exit status 2."""


class ExternalError(RuntimeError):
    """A failure outside the program: no network, a loss that is not finite, no memory left. Exit status 1."""


WorldError = ExternalError  # its name in version 0.1


class Interrupted(KeyboardInterrupt):
    """Training was stopped by a signal after its state had been saved. Exit status 128 + `signum`."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signal.Signals(signum)
