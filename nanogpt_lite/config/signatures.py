"""Functions that take the options of a config as keywords, and show them: to help(), to completion, to Modal."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from nanogpt_lite.config.schema import Options, type_of

Function = TypeVar("Function", bound=Callable[..., Any])


def with_options(kind: type[Options]) -> Callable[[Function], Function]:
    """Show a function's `**options` as the options of `kind` that they are."""

    def show(function: Function) -> Function:
        signature = inspect.signature(function)
        fixed = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        taken = {parameter.name for parameter in fixed}
        options = [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type)
            for f in dataclasses.fields(kind)
            if f.name not in taken
        ]
        function.__signature__ = signature.replace(parameters=[*fixed, *options])  # type: ignore[attr-defined]
        return function

    return show


def with_flags(*kinds: type[Options], **more: type) -> Callable[[Function], Function]:
    """Show a function's `**options` as flags that need not be given: `more` first, then the options of `kinds`.

    For command lines that are made from a function's signature, as Modal's is. Those pass every flag, None for
    one that was not given; the function gets only what was given.
    """

    def show(function: Function) -> Function:
        types = dict(more)
        for kind in kinds:
            types |= {field.name: type_of(field) for field in dataclasses.fields(kind)}

        @functools.wraps(function)
        def call(**flags: Any) -> Any:
            return function(**{name: value for name, value in flags.items() if value is not None})

        parameters = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind | None)
            for name, kind in reversed(types.items())  # Modal lists them from the last to the first
        ]
        returns = inspect.signature(function).return_annotation
        call.__signature__ = inspect.Signature(parameters, return_annotation=returns)  # type: ignore[attr-defined]
        call.__annotations__ = {p.name: p.annotation for p in parameters}  # without them Modal takes all for texts
        return call  # type: ignore[return-value]

    return show
