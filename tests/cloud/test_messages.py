"""Errors of the library, respelled for users of Modal."""

import pytest

from nanogpt_lite.cloud.messages import exit_on_error, modal_spelling
from nanogpt_lite.data.download import DownloadError
from nanogpt_lite.errors import ExternalError, UserError


@pytest.mark.parametrize("kind", [UserError, ExternalError, DownloadError])
def test_modal_spelling_respells_options_and_keeps_type_cause_and_traceback(kind):
    cause = OSError("no network")

    def fail():
        raise kind("give another `out_dir`, or `init_from='resume'`") from cause

    with pytest.raises(kind) as caught, modal_spelling():
        fail()
    assert type(caught.value) is kind
    assert str(caught.value) == "give another --out-dir, or --init-from resume"
    assert caught.value.__cause__ is cause
    assert "fail" in [entry.name for entry in caught.traceback]


def test_modal_spelling_leaves_other_errors_as_they_are():
    error = LookupError("`out_dir`")
    with pytest.raises(LookupError) as caught, modal_spelling():
        raise error
    assert caught.value is error
    assert str(error) == "`out_dir`"


def test_modal_spelling_decorates_each_call_of_a_function():
    @modal_spelling()
    def divide(a, *, by):
        if not by:
            raise UserError("give a larger `n_embd`")
        return a / by

    for _ in range(2):
        assert divide(6, by=2) == 3
        with pytest.raises(UserError, match="^give a larger --n-embd$"):
            divide(6, by=0)


@pytest.mark.parametrize(("kind", "status"), [(UserError, 2), (ExternalError, 1), (DownloadError, 1)])
def test_exit_on_error_prints_one_line_and_exits_with_the_status_of_the_command_line(kind, status, capsys):
    with pytest.raises(SystemExit) as caught, exit_on_error():
        raise kind("give another `out_dir`")
    assert caught.value.code == status
    assert capsys.readouterr().err == "error: give another --out-dir\n"


def test_exit_on_error_leaves_other_errors_as_they_are():
    with pytest.raises(LookupError), exit_on_error():
        raise LookupError
