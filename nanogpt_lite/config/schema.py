"""What an option is: a dataclass field with a default, a help text, a rule and a unit.

`Options` is the base class of configs. Values are checked here, also those that are given as text. The options
themselves are in `options`.
"""

import dataclasses
import difflib
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Self, TypeVar

from nanogpt_lite.errors import UserError, shorten

Value = int | float | bool | str


@dataclass(frozen=True)
class Rule:
    """A condition on a value. `description` completes the sentence "must be …"."""

    is_valid: Callable[[Any], bool]
    description: str
    choices: tuple[str, ...] = ()  # all valid values, if they are a few names


def bounds(
    *, ge: float | None = None, gt: float | None = None, lt: float | None = None, le: float | None = None
) -> Rule:
    """A number within bounds, which are named as in pydantic: >= ge, > gt, < lt, <= le."""

    def is_valid(value: float) -> bool:
        return (
            (ge is None or value >= ge)
            and (gt is None or value > gt)
            and (lt is None or value < lt)
            and (le is None or value <= le)
        )

    if ge is not None and le is not None:
        return Rule(is_valid, f"from {ge} to {le}")
    bounds_in_words = {f"{ge} or more": ge, f"above {gt}": gt, f"below {lt}": lt, f"at most {le}": le}
    return Rule(is_valid, " and ".join(words for words, bound in bounds_in_words.items() if bound is not None))


def count(*, ge: int) -> Rule:
    """A whole number of at least `ge`, and small enough that products and quotients of counts stay finite floats."""
    return Rule(lambda value: ge <= value <= 10**12, f"{ge} or more, and at most 10^12")


def one_of(*choices: str) -> Rule:
    """One of some names."""
    return Rule(lambda value: value in choices, f"one of {', '.join(choices)}", choices)


ANY = Rule(lambda value: True, "anything")
NOT_EMPTY = Rule(lambda value: bool(value), "not empty")


class Role(Enum):
    """What an option decides, and so what may be done with it when a run is resumed or exported."""

    NETWORK = "what the network computes from its weights: a checkpoint fixes it, an exporter must know it"
    BITS = "the last bits of a training: a resumed run with another value is not bit for bit the same"
    TRAINING = "how a network is trained"
    CALL = "one call: it is not stored in a checkpoint"


def option(
    default: Value,
    help: str,  # noqa: A002
    rule: Rule = ANY,
    *,
    role: Role,
    unit: str = "",
    absent: Value | None = None,
    part_of: str = "",
) -> Any:
    """A field of a config.

    `absent`: its value in a stored config without it. Each option that was added after version 0.1 has one: the
    behaviour of the versions before. `part_of`: another option, with whose default this one has no effect. The return
    type is Any, as in `dataclasses.field`, so that `n_layer: int = network_option(6, …)` passes the type checker.
    """
    metadata = {"help": help, "rule": rule, "unit": unit, "role": role, "absent": absent, "part_of": part_of}
    return dataclasses.field(default=default, metadata=metadata)


network_option = functools.partial(option, role=Role.NETWORK)
bits_option = functools.partial(option, role=Role.BITS)
training_option = functools.partial(option, role=Role.TRAINING)
call_option = functools.partial(option, role=Role.CALL)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base class of configs: frozen; values are checked on construction; unknown names are refused."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            _check_value(field, value)
            if type_of(field) is float:  # so that 1 and 1.0 give the same config, and the same text in a checkpoint
                object.__setattr__(self, field.name, float(value))

    @classmethod
    def names(cls) -> list[str]:
        """The names of all options, in order."""
        return [field.name for field in dataclasses.fields(cls)]

    @classmethod
    def names_by_role(cls, *roles: Role) -> list[str]:
        """The names of the options that have one of these roles, in order."""
        return [field.name for field in dataclasses.fields(cls) if field.metadata["role"] in roles]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """A config from names and values. `UserError` on an unknown name (with the nearest one) or an invalid value."""
        require_known(values, cls.names(), "option")
        return cls(**values)

    @classmethod
    def from_stored(cls, values: Mapping[str, Any]) -> Self:
        """The config in a checkpoint, which an earlier version may have written. `UserError` on an invalid value.

        Also on an option that this version does not know, and on one that is missing though every version stored it.
        """
        require_known(values, cls.names(), "option")
        absent = cls.absent_values(values)
        if missing := [name for name, value in absent.items() if value is None]:
            raise UserError(f"there is no value for the options {', '.join(missing)}; use another checkpoint")
        return cls(**{**absent, **values})

    @classmethod
    def absent_values(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values of the options that a stored config does not have; None if every version stored the option."""
        stored = [field for field in dataclasses.fields(cls) if field.metadata["role"] is not Role.CALL]
        return {field.name: field.metadata["absent"] for field in stored if field.name not in values}

    def replace(self, values: Mapping[str, Any]) -> Self:
        """A copy with some values replaced, checked as in `from_dict`."""
        return type(self).from_dict({**dataclasses.asdict(self), **values})

    def subset(self, kind: "type[AnyOptions]") -> "AnyOptions":
        """The config of class `kind`, with the values of this one. `kind` has only options that this class has."""
        return kind(**{name: getattr(self, name) for name in kind.names()})

    def stored(self) -> dict[str, Value]:
        """The values that a checkpoint stores: all but those of options that belong to one call."""
        return {name: getattr(self, name) for name in self.names_by_role(Role.NETWORK, Role.BITS, Role.TRAINING)}


AnyOptions = TypeVar("AnyOptions", bound=Options)


def parse_values(kind: type[Options], texts: Mapping[str, str]) -> dict[str, Value]:
    """Convert texts to values of options of `kind`. `UserError` on an unknown name or an invalid value."""
    require_known(texts, kind.names(), "option")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    values = {name: _parse_value(fields[name], text) for name, text in texts.items()}
    check_values(kind, values)
    return values


def check_values(kind: type[Options], values: Mapping[str, object]) -> None:
    """Check options of `kind`, each for itself. `UserError` on an unknown name or an invalid value."""
    require_known(values, kind.names(), "option")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name, value in values.items():
        _check_value(fields[name], value)


def require_known(names: Iterable[str], known: Iterable[str], what: str) -> None:
    """`UserError` if one of `names` is not in `known`; the message gives the nearest known name."""
    known = list(known)
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            remedy = f"did you mean {nearest[0]}?" if nearest else f"use one of {', '.join(known)}"
            raise UserError(f"unknown {what} {shorten(repr(name))}; {remedy}")


def type_of(field: "dataclasses.Field[Any]") -> type[Value]:
    """The type of an option: int, float, bool or str."""
    assert isinstance(field.type, type)
    return field.type


def _parse_value(field: "dataclasses.Field[Any]", text: str) -> Value:
    """Convert `text` to the field's type."""
    try:
        kind = type_of(field)
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if kind is int:
            return int(text)
        return float(text) if kind is float else text
    except (KeyError, ValueError):
        raise _invalid_value(field, text) from None


def _check_value(field: "dataclasses.Field[Any]", value: object) -> None:
    """`UserError` unless `value` has the field's type and satisfies its rule."""
    kind = type_of(field)
    accepted = (float, int) if kind is float else kind
    has_type = isinstance(value, accepted) and (kind is bool or not isinstance(value, bool))
    is_finite = not (kind is float and has_type) or _is_finite(value)
    if not (has_type and is_finite and field.metadata["rule"].is_valid(value)):
        raise _invalid_value(field, value)


def _is_finite(value: Any) -> bool:
    """Whether a number is finite, also as a float."""
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that is too large
        return False


def _invalid_value(field: "dataclasses.Field[Any]", value: object) -> UserError:
    rule, unit = field.metadata["rule"], field.metadata["unit"]
    expected = {int: "a whole number", float: "a number", bool: "True or False", str: "text"}[type_of(field)]
    expected += f", {rule.description}" if rule is not ANY else ""
    expected += f" ({unit})" if unit else ""
    shown = shorten(repr(value))
    return UserError(f"`{field.name}={shown}` is an invalid value: must be {expected}. Help: {field.metadata['help']}")
