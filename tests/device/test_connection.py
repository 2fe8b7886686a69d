"""The connection between ranks: those that are missing are named. Real ranks are in `test_distributed`."""

from datetime import timedelta

import pytest
import torch

from nanogpt_lite.device import connection
from nanogpt_lite.errors import ExternalError


class FakeStore:
    """Takes no time to wait. The rank `later` is ready during the second wait."""

    def __init__(self, *, ready, later=None):
        self.keys, self.later = {f"rank {rank} is ready" for rank in ready}, later
        self.waited = timedelta()

    def set(self, key, value):
        self.keys.add(key)

    def check(self, keys):
        return self.keys.issuperset(keys)

    def wait(self, keys, timeout):
        if self.waited and self.later is not None:
            self.set(f"rank {self.later} is ready", "")
        if not self.check(keys):
            self.waited += timeout
            raise RuntimeError("wait timeout")


def wait_for_ranks(rank, store):
    connection.wait_for_ranks(store, rank, world_size=4)


def test_ranks_that_are_missing_are_named_after_two_minutes_and_in_the_error_after_ten():
    store = FakeStore(ready=[2])
    with (
        pytest.warns(UserWarning, match="^rank 1 and rank 3 did not begin within 120 seconds after rank 0"),
        pytest.raises(
            ExternalError, match="^rank 1 and rank 3 did not begin within 600 seconds after rank 0; look for"
        ),
    ):
        wait_for_ranks(0, store)
    assert store.waited == timedelta(minutes=10)


def test_a_slow_rank_is_named_and_waited_for():
    with pytest.warns(UserWarning, match="^rank 3 did not begin"):
        wait_for_ranks(0, FakeStore(ready=[1, 2], later=3))


def test_one_of_the_ranks_that_wait_warns():
    wait_for_ranks(3, FakeStore(ready=[0, 2], later=1))  # a warning would be an error


def test_ranks_that_are_all_there_go_on_at_once():
    store = FakeStore(ready=[0, 1, 3])
    wait_for_ranks(2, store)
    assert not store.waited


def test_the_advice_for_gpus_is_about_nccl():
    assert "NCCL_P2P_DISABLE=1" in connection._connection_advice(torch.device("cuda", 0))
