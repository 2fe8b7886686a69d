"""Signatures that are built from options, as Python's `inspect` and `typing` see them."""

import ast
import inspect
import typing
from collections.abc import Callable
from pathlib import Path

import pytest

import nanogpt_lite
from nanogpt_lite.config.options import DataConfig, SampleConfig, TrainConfig
from nanogpt_lite.config.signatures import with_flags, with_options


def test_with_options_shows_types_and_defaults():
    @with_options(DataConfig)
    def prepare(dataset: str, *, overwrite: bool = False, **options: str) -> None: ...

    shown = inspect.signature(prepare).parameters
    assert list(shown) == ["dataset", "overwrite", "tokenizer"]
    assert shown["tokenizer"].default == "auto"
    assert shown["dataset"].default is inspect.Parameter.empty


def test_with_flags_shows_optional_flags_and_passes_only_given_ones():
    @with_flags(SampleConfig, gpu=str)
    def sample(**options: int) -> dict[str, int]:
        return options

    typed: Callable[..., dict[str, int]] = sample
    shown = inspect.signature(sample).parameters
    assert list(reversed(shown)) == ["gpu", *SampleConfig.names()]
    assert all(parameter.default is None for parameter in shown.values())
    hints = typing.get_type_hints(sample)
    assert hints["gpu"] == str | None
    assert hints["top_k"] == int | None
    assert hints["temperature"] == float | None
    assert typed(**{**dict.fromkeys(shown), "top_k": 0}) == {"top_k": 0}
    with pytest.raises(TypeError):
        typed("ROMEO:")


def test_flags_of_options_take_the_values_of_the_command_line():
    """An option that is True or False takes one of these words, one with choices a choice; in `more` are switches."""

    @with_flags(TrainConfig, overwrite=bool)
    def train(**options: object) -> dict[str, object]:
        return options

    typed: Callable[..., dict[str, object]] = train
    hints = typing.get_type_hints(train)
    assert hints["compile"] == typing.Literal["True", "False"]
    assert set(typing.get_args(hints["optimizer"])) == {"adamw", "muon"}
    assert hints["overwrite"] == bool | None
    assert hints["dataset"] == str | None
    assert typed(compile="False", bias="True") == {"compile": False, "bias": True}
    assert typed(compile=False, bias=True, overwrite=False) == {"compile": False, "bias": True, "overwrite": False}


def test_flag_in_more_wins_over_an_option_of_its_name():
    """As in a sweep, where each option is a text with several values."""

    @with_flags(TrainConfig, compile=str, n_layer=str)
    def sweep(**options: object) -> dict[str, object]:
        return options

    typed: Callable[..., dict[str, object]] = sweep
    hints = typing.get_type_hints(sweep)
    assert (hints["compile"], hints["n_layer"], hints["n_head"]) == (str | None, str | None, int | None)
    assert typed(compile="True,False", n_layer="4,6") == {"compile": "True,False", "n_layer": "4,6"}


def test_no_default_of_an_option_is_repeated_in_a_signature():
    """No function or class has a parameter or field with the name and the default of an option."""
    options = {f.name: f.default for kind in (TrainConfig, SampleConfig) for f in kind.__dataclass_fields__.values()}
    for path in Path(nanogpt_lite.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.arguments):
                named = [*zip(node.kwonlyargs, node.kw_defaults, strict=True)]
                named += zip(reversed(node.args), reversed(node.defaults), strict=False)
                for argument, default in named:
                    if argument.arg in options and isinstance(default, ast.Constant):
                        same = default.value == options[argument.arg]
                        assert not same or argument.arg == "tokenizer", f"{path.name}: {argument.arg}"
