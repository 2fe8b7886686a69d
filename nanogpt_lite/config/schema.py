"""What an option is: a field with a default, a unit, a rule and a help text, and the class of frozen configs of them.

The options themselves stand in `config`. Standard library only, so that `--help` answers at once.
"""

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from nanogpt_lite.errors import UserError

Value = int | float | bool | str


@dataclass(frozen=True)
class Rule:
    """What a value has to satisfy: the words complete the sentence "must be …"."""

    holds: Callable[[Any], bool]
    words: str


def at_least(low: float) -> Rule:
    """`low` or more."""
    return Rule(lambda value: value >= low, f"{low} or more")


def count_from(low: int) -> Rule:
    """`low` or more, and few enough for every product and quotient of it to be a number."""
    return Rule(lambda value: low <= value <= 10**12, f"{low} or more, and at most 10^12")


def above_to(low: float, high: float) -> Rule:
    """More than `low`, and `high` at most."""
    return Rule(lambda value: low < value <= high, f"above {low} and at most {high}")


def from_to(low: float, high: float) -> Rule:
    """Between `low` and `high`, both included."""
    return Rule(lambda value: low <= value <= high, f"from {low} to {high}")


def from_below(low: float, high: float) -> Rule:
    """`low` or more, and below `high`."""
    return Rule(lambda value: low <= value < high, f"{low} or more and below {high}")


def one_of(*choices: str) -> Rule:
    """One of some names."""
    return Rule(lambda value: value in choices, f"one of {', '.join(choices)}")


ANY = Rule(lambda value: True, "anything")
NOT_EMPTY = Rule(lambda value: bool(value), "not empty")


def option(default: Value, help: str, rule: Rule = ANY, *, unit: str = "", stored: bool = True) -> Any:  # noqa: A002
    """A field of a config. `stored=False`: it belongs to one call, and no checkpoint remembers it."""
    metadata = {"help": help, "rule": rule, "unit": unit, "stored": stored}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What all configs share: checks on construction, and strict reading of names and values."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            _check_value(field, value)
            if type_of(field) is float:  # so that 1 and 1.0 are the same, in a checkpoint too
                object.__setattr__(self, field.name, float(value))

    @classmethod
    def names(cls) -> list[str]:
        """The names of all options, in order."""
        return [field.name for field in dataclasses.fields(cls)]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """A config from names and values. `UserError` on an unknown name (with the nearest) or a bad value."""
        require_known(values, cls.names(), "option")
        return cls(**values)

    def replace(self, values: Mapping[str, Any]) -> Self:
        """The same config with some values replaced, checked like `from_dict`."""
        return type(self).from_dict({**dataclasses.asdict(self), **values})

    def subset(self, kind: "type[AnyOptions]") -> "AnyOptions":
        """The options of this config that config class `kind` has."""
        return kind(**{name: getattr(self, name) for name in kind.names()})

    def stored(self) -> dict[str, Value]:
        """What a checkpoint remembers: everything but the options that belong to one call."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.metadata["stored"]}


AnyOptions = TypeVar("AnyOptions", bound=Options)


def parse_values(kind: type[Options], texts: Mapping[str, str]) -> dict[str, Value]:
    """The values of options of `kind` that were given as text. `UserError` on an unknown name or a bad value."""
    require_known(texts, kind.names(), "option")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    values = {name: _parse_value(fields[name], text) for name, text in texts.items()}
    for name, value in values.items():
        _check_value(fields[name], value)
    return values


def require_known(names: Iterable[str], known: Iterable[str], what: str) -> None:
    """`UserError` if one of `names` is not among `known`; it names the nearest one."""
    known = list(known)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise UserError(f"unknown {what} {name!r}; {remedy}")


def type_of(field: "dataclasses.Field[Any]") -> type[Value]:
    """The type of an option: int, float, bool or str."""
    assert isinstance(field.type, type)
    return field.type


def _parse_value(field: "dataclasses.Field[Any]", text: str) -> Value:
    """`text` as a value of the field's type."""
    try:
        kind = type_of(field)
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if kind is int:
            return int(text)
        return float(text) if kind is float else text
    except (KeyError, ValueError):
        raise _bad_value(field, text) from None


def _check_value(field: "dataclasses.Field[Any]", value: Any) -> None:
    """`UserError` unless `value` has the field's type and keeps its rule."""
    kind = type_of(field)
    wanted = (float, int) if kind is float else kind
    right_type = isinstance(value, wanted) and (kind is bool or not isinstance(value, bool))
    if not right_type or not field.metadata["rule"].holds(value) or value in (float("inf"), float("-inf")):
        raise _bad_value(field, value)


def _bad_value(field: "dataclasses.Field[Any]", value: Any) -> UserError:
    words = {int: "a whole number", float: "a number", bool: "True or False", str: "text"}[type_of(field)]
    rule, unit = field.metadata["rule"], field.metadata["unit"]
    words += f", {rule.words}" if rule is not ANY else ""
    words += f" ({unit})" if unit else ""
    return UserError(f"{field.name}={value!r} is not possible: it must be {words}. Its help: {field.metadata['help']}")
