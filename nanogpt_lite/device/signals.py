"""Signals that ask the program to stop, as a flag that the training loop reads between two steps."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class StopRequest:
    """Whether a signal has asked the program to stop: `signum` is its number, or None."""

    signum: int | None = None

    def requested(self) -> bool:
        """Whether a signal has been received."""
        return self.signum is not None


@contextlib.contextmanager
def exit_on_interrupt() -> Iterator[None]:
    """End the process at once, with status 130, on a Ctrl-C in the block: for the import of large libraries.

    They lose an interrupt that comes while they initialize themselves, or are left without a part of their names.
    """

    def end(signum: int, frame: FrameType | None) -> None:
        os.write(2, b"interrupted\n")
        os._exit(128 + signum)

    is_ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # as in a job in the background
    if is_ignored or threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


@contextlib.contextmanager
def stop_on_signals(request: StopRequest | None = None) -> Iterator[StopRequest]:
    """Record the first SIGINT, SIGTERM or SIGHUP (a closed terminal) as a request; after it, SIGINT interrupts.

    `request` continues an earlier block: signals count from its beginning. Without it the request is a new one. Python
    handles signals in the main thread only: in another thread there is never a request. A SIGHUP that is ignored, as
    under nohup, stays ignored. Windows has no SIGHUP, and its SIGTERM ends a process without asking it.
    """
    request = request or StopRequest()

    def handle(signum: int, frame: FrameType | None) -> None:
        if request.requested() and signum == signal.SIGINT:
            raise KeyboardInterrupt
        request.signum = request.signum or signum  # a closed terminal sends more than one signal

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    hangup = getattr(signal, "SIGHUP", None)  # Windows has none, but SIGBREAK (Ctrl-Break)
    signums = [signal.SIGINT, signal.SIGTERM]
    signums += [signum for signum in (hangup, getattr(signal, "SIGBREAK", None)) if signum is not None]
    if hangup is not None and signal.getsignal(hangup) == signal.SIG_IGN:
        signums.remove(hangup)
    handlers = {signum: signal.signal(signum, handle) for signum in signums}
    try:
        yield request
    finally:
        if hangup is not None and request.signum == hangup:
            handlers[hangup] = signal.SIG_IGN  # a second SIGHUP must not end the process before its last message
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
