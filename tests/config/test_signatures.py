"""What a function with options shows, against Python's own reading of a signature."""

import inspect
import typing

import pytest

from nanogpt_lite.config.options import DataConfig, SampleConfig
from nanogpt_lite.config.signatures import with_flags, with_options


def test_options_show_with_their_types_and_defaults():
    @with_options(DataConfig)
    def prepare(dataset: str, *, overwrite: bool = False, **options: str) -> None: ...

    shown = inspect.signature(prepare).parameters
    assert list(shown) == ["dataset", "overwrite", "tokenizer"]
    assert shown["tokenizer"].default == "auto"
    assert shown["dataset"].default is inspect.Parameter.empty


def test_flags_need_not_be_given_and_only_given_ones_arrive():
    @with_flags(SampleConfig, gpu=str)
    def sample(**options: int) -> dict[str, int]:
        return options

    shown = inspect.signature(sample).parameters
    assert list(reversed(shown)) == ["gpu", *SampleConfig.names()]
    assert all(parameter.default is None for parameter in shown.values())
    hints = typing.get_type_hints(sample)
    assert hints["gpu"] == str | None
    assert hints["top_k"] == int | None
    assert hints["temperature"] == float | None
    assert sample(**{**dict.fromkeys(shown), "top_k": 0}) == {"top_k": 0}
    with pytest.raises(TypeError):
        sample("ROMEO:")
