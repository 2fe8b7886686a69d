"""The ranks of integers, against `numpy.unique`."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_lite.ngrams import ranking
from nanogpt_lite.ngrams.ranking import rank_keys


def assert_as_unique(keys):
    expected = np.unique(keys, return_inverse=True, return_counts=True)
    for got, array in zip(rank_keys(keys), expected, strict=True):
        assert got.dtype == np.int64
        assert np.array_equal(got, array)


@given(st.lists(st.integers(0, 2**63 - 1) | st.integers(0, 5)))
def test_ranks_are_those_of_unique_for_keys_of_any_size(keys):
    assert_as_unique(np.array(keys, np.int64))


@pytest.mark.parametrize("length", [0, 1, 7, 8, 1000])
def test_the_largest_keys_beside_an_index_are_ranked_too(length):
    most = 2 ** (ranking.SORTED_BITS - length.bit_length()) - 1
    keys = np.random.default_rng(length).integers(0, most, length, endpoint=True)
    keys[:1] = most
    assert_as_unique(keys)


def test_keys_that_leave_room_for_an_index_are_sorted_with_it(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("sorted by `numpy.unique`")

    keys = np.array([5, 2**40, 5])
    monkeypatch.setattr(np, "unique", fail)
    assert [array.tolist() for array in rank_keys(keys)] == [[5, 2**40], [0, 1, 0], [2, 1]]
    with pytest.raises(AssertionError, match="sorted by"):
        rank_keys(np.array([2**61, 2**61]))
