"""Large numbers as short text."""

import pytest

from nanogpt_lite.tracking.number_format import COUNT_SUFFIXES, format_number


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (999.6, "1k"), (999_999, "1M"), (12_345, "12.3k"), (2e9, "2G"), (3.21e15, "3.21P")],
)
def test_numbers_are_rounded_before_the_suffix_is_chosen(number, text):
    assert format_number(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(10_745_088, "10.75M"), (123_456, "123.5k"), (999_960, "1M"), (1_557_611_200, "1.558B"), (42.25, "42.25")],
)
def test_counts_have_more_digits_and_billions(number, text):
    assert format_number(number, digits=4, suffixes=COUNT_SUFFIXES) == text
