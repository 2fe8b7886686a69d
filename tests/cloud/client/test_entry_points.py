"""Local entry points and the Functions of the same names: what `modal run` finds, and what Python calls."""

import modal
import pytest

import nanogpt_lite as ng
from nanogpt_lite.cloud.client.entry_points import command_flags, command_of, names_for_modal_run

app = modal.App("tiny")


@app.local_entrypoint()
def main() -> None: ...


@app.local_entrypoint()
def train() -> None: ...


NAMES = {"main": main, "train": train, "GPU": "L4", "app": app, "__doc__": "text"}


@pytest.mark.parametrize(
    "arguments",
    [
        "modal run modal_app.py",
        "modal run /home/me/modal_app.py --dataset my.txt",
        "modal run -m modal_app",
        "modal run --detach modal_app.py --gpu L4",
        "modal deploy modal_app.py",
    ],
)
def test_file_alone_means_main(arguments):
    found = names_for_modal_run(NAMES, "/root/modal_app.py", arguments.split())
    assert found == ["main", "GPU", "app", "__doc__"]


@pytest.mark.parametrize(
    "arguments",
    [
        "modal run modal_app.py::train",
        "modal run modal_app.py::main",
        "modal run -m modal_app::train --dataset modal_app.py",
        "modal run ./modal_app.py::train --max-iters 3",
        "python -m pytest tests/cloud/test_modal_app.py",
        "python my_script.py",
        "python",
        "",
    ],
)
def test_other_programs_and_a_name_after_the_file_find_all(arguments):
    assert names_for_modal_run(NAMES, "/root/modal_app.py", arguments.split()) == [*NAMES]


class RecordedFunction:
    """Stands for a Modal Function: returns a result, or what `errors_as_results` makes of an error."""

    def __init__(self, result):
        self.result, self.calls = result, []

    def remote(self, *args, **kwargs):
        self.calls.append(("remote", args, kwargs))
        return self.result

    def local(self, *args, **kwargs):
        self.calls.append(("local", args, kwargs))
        return self.result

    def spawn(self, *args, **kwargs):
        self.calls.append(("spawn", args, kwargs))
        return "a call"

    def with_options(self, **options):
        return options


def make_command(function):
    @command_of(function)
    def command(**flags):
        return flags

    return command


def test_command_is_called_on_this_machine_and_has_the_methods_of_its_function():
    function = RecordedFunction({"step": 4})
    command = make_command(function)
    assert command(max_iters=3) == {"max_iters": 3}
    assert function.calls == []
    assert command.remote(1, seed=2) == command.local(1, seed=2) == {"step": 4}
    assert command.spawn(seed=3) == "a call"
    assert command.with_options(gpu="L4") == {"gpu": "L4"}
    assert function.calls == [("remote", (1,), {"seed": 2}), ("local", (1,), {"seed": 2}), ("spawn", (), {"seed": 3})]


@pytest.mark.parametrize("kind", [ng.UserError, ng.ExternalError])
@pytest.mark.parametrize("method", ["remote", "local"])
def test_error_that_a_function_returned_is_raised_in_python(kind, method):
    command = make_command(RecordedFunction({"error": "give another --out-dir", "kind": kind.__name__}))
    with pytest.raises(kind, match="give another --out-dir"):
        getattr(command, method)()


@pytest.mark.parametrize(
    ("texts", "shown"),
    [((), "interrupted; a training that had begun is saved"), (("it is in x",), "interrupted; it is in x")],
)
def test_interrupted_command_says_what_it_leaves_behind(texts, shown, capsys):
    @command_flags()
    def command(**flags):
        raise KeyboardInterrupt(*texts)

    with pytest.raises(KeyboardInterrupt):
        command()
    assert shown in capsys.readouterr().err
