"""The fields of a body: known names, types, and values of options."""

from collections.abc import Collection, Mapping
from typing import Any

from nanogpt_lite.config.options import LoadConfig
from nanogpt_lite.config.schema import AnyOptions, require_known
from nanogpt_lite.errors import UserError, shorten


class FieldError(UserError):
    """A field of a request is not valid."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def given_fields(body: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """The fields that are not null. `FieldError` for one that is not known."""
    for name in body:
        try:
            require_known([name], known, "field")
        except UserError as error:
            raise FieldError(shorten(name), str(error)) from None
    return {name: value for name, value in body.items() if value is not None}


def read_options(
    kind: type[AnyOptions], given: Mapping[str, Any], options: Mapping[str, str], load: LoadConfig
) -> AnyOptions:
    """A config of class `kind`: the fields that are in `options`, which gives their names in the config; then `load`.

    `FieldError` for an invalid value.
    """
    values: dict[str, Any] = {name: getattr(load, name) for name in LoadConfig.names()}
    for field, option in options.items():
        if field in given:
            try:
                kind.from_dict({option: given[field]})
            except UserError as error:
                raise FieldError(field, str(error).replace(f"`{option}=", f"`{field}=")) from None
            values[option] = given[field]
    return kind.from_dict(values)


def read_flag(given: Mapping[str, Any], name: str) -> bool:
    """A field that is true or false, false by default."""
    value = given.get(name, False)
    if not isinstance(value, bool):
        raise FieldError(name, f"`{name}` must be true or false")
    return value


def read_count(given: Mapping[str, Any], name: str, limit: int) -> int | None:
    """A field that is a whole number from 0 to a limit, None by default."""
    value = given.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= limit):
        raise FieldError(name, f"`{name}` must be a whole number from 0 to {limit}")
    return value


def read_model(given: Mapping[str, Any]) -> str | None:
    """The name of the model, None for the default."""
    model = given.get("model")
    if model is not None and not isinstance(model, str):
        raise FieldError("model", "`model` must be a text")
    return model
