"""Decorators that give a function with `**options` an explicit signature, built from the options of config classes.

So `help()`, completion in notebooks, and command lines that are built from a signature (Modal's) see every option.
Type checkers do not run this code: what they see is in `keyword_types`.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Collection
from typing import Any, Literal, TypeVar

from nanogpt_lite.config.schema import Options, type_of

Function = TypeVar("Function", bound=Callable[..., object])


def with_options(kind: type[Options], *, without: Collection[str] = ()) -> Callable[[Function], Function]:
    """Replace `**options` in a function's signature by keyword-only parameters, one for each option of `kind`.

    Those of the names `without` are not shown.
    """

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        explicit = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        explicit_names = {parameter.name for parameter in explicit}
        options = [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type)
            for f in dataclasses.fields(kind)
            if f.name not in explicit_names and f.name not in without
        ]
        function.__signature__ = signature.replace(parameters=[*explicit, *options])  # type: ignore[attr-defined]
        return function

    return decorate


def with_flags(*kinds: type[Options], **more: type) -> Callable[[Function], Function]:
    """Replace `**options` in a function's signature by flags with the default None: `more`, then those of `kinds`.

    For Modal, which builds a command line from the signature and passes None for a flag that was not given. The
    decorated function receives only what was given. As on our own command line, an option that is True or False takes
    one of these as its value; a `bool` in `more` is a switch.
    """

    def decorate(function: Function) -> Function:
        options = {field.name: field for kind in kinds for field in dataclasses.fields(kind)}
        annotations: dict[str, object] = {name: kind | None for name, kind in more.items()}
        annotations |= {name: _flag_type(field) for name, field in options.items() if name not in more}

        @functools.wraps(function)
        def call(**flags: object) -> object:
            given = {name: value for name, value in flags.items() if value is not None}
            for name in given.keys() & (options.keys() - more.keys()):
                if type_of(options[name]) is bool:
                    given[name] = given[name] in (True, "True")
            return function(**given)

        parameters = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
            for name, annotation in reversed(annotations.items())  # the help of Modal lists the last parameter first
        ]
        returns = inspect.signature(function).return_annotation
        call.__signature__ = inspect.Signature(parameters, return_annotation=returns)  # type: ignore[attr-defined]
        call.__annotations__ = {p.name: p.annotation for p in parameters}  # without them Modal parses all flags as str
        return call  # type: ignore[return-value]

    return decorate


def _flag_type(field: "dataclasses.Field[Any]") -> object:
    """The annotation from which Modal makes the flag of an option."""
    if type_of(field) is bool:
        return Literal["True", "False"]
    choices = field.metadata["rule"].choices
    return Literal[choices] if choices else type_of(field) | None
