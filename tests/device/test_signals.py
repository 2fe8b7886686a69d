"""Signals as requests to stop."""

import os
import signal
import threading

import pytest

from nanogpt_lite.device import signals


@pytest.mark.posix("os.kill sends no signal on Windows, but ends the process")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_requests_a_stop_and_sigint_then_interrupts(signum):
    before = signal.getsignal(signum)
    with signals.stop_on_signals() as stop:
        assert not stop.requested()
        os.kill(os.getpid(), signum)
        assert stop.requested()
        assert stop.signum == signum
        os.kill(os.getpid(), signal.SIGTERM)  # a second SIGTERM has no effect; only Ctrl-C interrupts
        assert stop.signum == signum
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signum) is before


def test_no_stop_is_requested_outside_the_main_thread():
    requested = []

    def in_thread():
        with signals.stop_on_signals() as stop:
            requested.append(stop.requested())

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
    assert requested == [False]
