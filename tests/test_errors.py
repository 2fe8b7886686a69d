"""The exceptions that reach a user, and the names of version 0.1, which stay importable."""

import signal

import nanogpt_lite as ng
from nanogpt_lite.errors import first_line, shorten


def test_old_names_are_the_new_ones():
    assert ng.WorldError is ng.ExternalError
    assert ng.pieces is ng.stream_batch


def test_interrupted_is_a_keyboard_interrupt_with_its_signal_and_folder():
    error = ng.Interrupted(signal.SIGTERM, "the state is saved", out_dir="runs/a")
    assert isinstance(error, KeyboardInterrupt)
    assert (error.signum, error.out_dir, str(error)) == (signal.SIGTERM, "runs/a", "the state is saved")


def test_every_error_of_the_library_but_an_interruption_has_one_base_class():
    assert issubclass(ng.UserError, ng.NanoGPTLiteError)
    assert issubclass(ng.ExternalError, ng.NanoGPTLiteError)
    assert not issubclass(ng.Interrupted, Exception)  # `except NanoGPTLiteError` must not swallow Ctrl-C


def test_errors_stay_the_builtin_kinds_that_they_were():
    assert issubclass(ng.UserError, ValueError)
    assert issubclass(ng.ExternalError, RuntimeError)


def test_shortened_text_is_one_line_of_at_most_200_characters():
    assert shorten("as it is") == "as it is"
    assert shorten("a\nb\r\nc\x85\u2028d") == "a b c  d"
    assert shorten("a" * 200) == "a" * 200
    assert shorten("b" * 201) == "b" * 200 + "…"


def test_first_line_of_an_error_of_another_library():
    assert first_line(RuntimeError("\nCUDA error: no\nCompile with")) == "CUDA error: no"
    assert first_line("its results differ") == "its results differ"
    assert first_line(TimeoutError()) == "TimeoutError"
    assert first_line("backend raised:\nRuntimeError: no compiler\nmore") == "backend raised: RuntimeError: no compiler"
    assert first_line(ValueError("a" * 201)) == "a" * 200
