"""Errors of the library, respelled for users of Modal."""

import json

import pytest

from nanogpt_lite.cloud.messages import errors_as_results, exit_on_error, modal_spelling, result_or_error
from nanogpt_lite.data.download import DownloadError
from nanogpt_lite.errors import ExternalError, Interrupted, UserError


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


@pytest.mark.parametrize(
    ("kind", "raised"), [(UserError, UserError), (ExternalError, ExternalError), (DownloadError, ExternalError)]
)
def test_error_leaves_a_function_as_a_result_and_is_raised_where_it_arrives(kind, raised):
    @errors_as_results
    def fail():
        raise kind("give another `out_dir`")

    result = fail()
    assert result == {"error": "give another --out-dir", "kind": raised.__name__}
    with pytest.raises(raised, match="^give another --out-dir$"):
        result_or_error(json.loads(json.dumps(result)))  # plain values, which need no class of ours to be read


@pytest.mark.parametrize("error", [LookupError("a bug"), Interrupted(15, "the state is saved"), KeyboardInterrupt()])
def test_other_errors_leave_a_function_as_they_are_so_that_modal_starts_it_again(error):
    @errors_as_results
    def fail():
        raise error

    with pytest.raises(type(error)) as caught:
        fail()
    assert caught.value is error


@pytest.mark.parametrize("result", ["text", ["a", "b"], {"step": 1}, {"error": "of the loss", "step": 1}, None, 0.5])
def test_result_of_a_function_arrives_as_it_is(result):
    @errors_as_results
    def work(value, *, times):
        return [value] * times

    assert work(result, times=2) == [result, result]
    assert result_or_error(result) is result
