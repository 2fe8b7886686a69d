"""The exceptions that reach a user, and the names of version 0.1, which stay importable."""

import signal

import nanogpt_lite as ng


def test_old_names_are_the_new_ones():
    assert ng.WorldError is ng.ExternalError
    assert ng.pieces is ng.stream_batch


def test_interrupted_is_a_keyboard_interrupt_with_its_signal_and_folder():
    error = ng.Interrupted(signal.SIGTERM, "the state is saved", out_dir="runs/a")
    assert isinstance(error, KeyboardInterrupt)
    assert (error.signum, error.out_dir, str(error)) == (signal.SIGTERM, "runs/a", "the state is saved")
