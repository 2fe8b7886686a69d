"""Local entry points, which stand before the Functions of the same names: how Python and `modal run` find both."""

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

from modal import Function
from modal.app import LocalEntrypoint

from nanogpt_lite.cloud.messages import exit_on_error, result_or_error
from nanogpt_lite.config.schema import Options
from nanogpt_lite.config.signatures import with_flags

AFTER_INTERRUPT = (
    "a training that had begun is saved. modal run modal_app.py::runs lists it, and modal run modal_app.py::train "
    "--out-dir NAME --init-from resume continues it"
)


class Command(Protocol):
    """A local entry point with the methods of a Function."""

    def __call__(self, **flags: Any) -> Any:
        """What `modal run` calls, on this machine."""

    remote: Callable[..., Any]
    local: Callable[..., Any]
    spawn: Callable[..., Any]
    with_options: Callable[..., Any]


def command_flags(*kinds: type[Options], **more: type) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate the function of a local entry point: `with_flags`, with flags of what is rented, and `exit_on_error`."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        @exit_on_error()
        def command(**flags: Any) -> Any:
            try:
                return function(**flags)
            except KeyboardInterrupt as error:  # the text of one that the function has raised says what is left behind
                print(f"\ninterrupted; {str(error) or AFTER_INTERRUPT}", file=sys.stderr)
                raise

        return with_flags(*kinds, **more, gpu=str, timeout=str, max_dollars=float)(command)

    return decorate


def command_of(function: "Function[..., Any, Any]") -> Callable[[Any], Command]:
    """Give a local entry point the methods of the Function that it calls, so that Python finds both under one name.

    `modal run FILE::NAME` on a Function calls it at once, in a container. On a local entry point it runs code of this
    machine first. `.remote` and `.local` raise a `UserError` where the Function returns a mistake.
    """

    def decorate(entry_point: Any) -> Command:
        entry_point.remote = lambda *args, **kwargs: result_or_error(function.remote(*args, **kwargs))
        entry_point.local = lambda *args, **kwargs: result_or_error(function.local(*args, **kwargs))
        entry_point.spawn, entry_point.with_options = function.spawn, function.with_options
        return cast("Command", entry_point)

    return decorate


@exit_on_error()
def show_when_deployed(app: str, line: Callable[[], str], arguments: Sequence[str] = tuple(sys.argv)) -> None:
    """Print a line if `modal serve` or `modal deploy` names an App of the file, as FILE::APP.

    Neither command calls a local entry point, which could print it.
    """
    if {"serve", "deploy"} & {*arguments} and any(argument.endswith(f"::{app}") for argument in arguments):
        print(line())


def names_for_modal_run(
    names: Mapping[str, object], file: str, arguments: Sequence[str] = tuple(sys.argv)
) -> list[str]:
    """The names in a module that `modal run` is to find, for the module's `__dir__`.

    `modal run FILE` needs a single local entry point. So where `arguments` name the file alone, that is `main`.
    """
    stem = Path(file).stem
    references = [argument.partition("::") for argument in arguments]
    names_file_alone = next((not name for path, _, name in references if Path(path).stem == stem), False)
    return [
        name
        for name, value in names.items()
        if name == "main" or not (names_file_alone and isinstance(value, LocalEntrypoint))
    ]
