"""What a process does without."""

import warnings

import pytest

from nanogpt_lite.device import fallbacks
from nanogpt_lite.device.fallbacks import FastPath

pytestmark = pytest.mark.usefixtures("fresh_fast_paths")


def test_giving_up_warns_once_and_is_remembered():
    assert all(fallbacks.is_usable(fast_path) for fast_path in FastPath)
    assert fallbacks.describe() == []
    with pytest.warns(UserWarning, match=r"^fused attention cannot be used \(too old\); going on without it, slower$"):
        fallbacks.give_up(FastPath.ATTENTION, "too old\nmore lines")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fallbacks.give_up(FastPath.ATTENTION, "another reason")
    assert [fast_path for fast_path in FastPath if not fallbacks.is_usable(fast_path)] == [FastPath.ATTENTION]
    assert fallbacks.describe() == ["fused attention: too old"]


def test_a_comparison_goes_without_for_a_moment():
    with pytest.raises(ZeroDivisionError):
        with fallbacks.without(FastPath.FOREACH):
            assert not fallbacks.is_usable(FastPath.FOREACH)
            raise ZeroDivisionError
    assert fallbacks.is_usable(FastPath.FOREACH)
    assert fallbacks.describe() == []


def test_an_error_without_a_text_is_named():
    with pytest.warns(UserWarning, match=r"\(NotImplementedError\)"):
        fallbacks.give_up(FastPath.FOREACH, NotImplementedError())
