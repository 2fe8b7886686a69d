"""What the machine offers: device, number format, threads, seeds, signals. Differences between devices end here."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


class StopRequest:
    """Whether somebody asked to stop: `signum` is the signal, or None."""

    signum: int | None = None

    def requested(self) -> bool:
        """Whether somebody asked."""
        return self.signum is not None


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn the first SIGINT, SIGTERM or SIGHUP (a lost terminal) into a request to stop; after it, SIGINT interrupts.

    Signals can be received in the main thread only; elsewhere the request is never made. A SIGHUP that is ignored, as
    under nohup, stays so.
    """
    request = StopRequest()

    def note(signum: int, frame: Any) -> None:
        if request.requested() and signum == signal.SIGINT:
            raise KeyboardInterrupt
        request.signum = request.signum or signum  # a lost terminal sends more than one

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    numbers = [signal.SIGINT, signal.SIGTERM]
    hangup = getattr(signal, "SIGHUP", None)  # Windows has none
    if hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN:
        numbers.append(hangup)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield request
    finally:
        if hangup is not None and request.signum == hangup:
            before[hangup] = signal.SIG_IGN  # a second one must not cut short what is said at the end
        for number, handler in before.items():
            signal.signal(number, handler)
