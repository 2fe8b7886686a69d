"""The time that a call uses GPUs, over its attempts, and the line that reports its cost.

The prices are in `device.gpus`, the host's share in `cloud.client.rental`.
"""

import json
import threading
from types import SimpleNamespace

import pytest
import torch
from conftest import wait_for
from shared_volume import SharedDict

from nanogpt_lite.cloud import gpu_time
from nanogpt_lite.cloud.calls import Call
from nanogpt_lite.cloud.client.volume_names import GPU_TIME_FILE
from nanogpt_lite.cloud.gpu_time import GPUTime, count_attempt, report_gpu_time


class Clock:
    """Stands for the monotonic clock: it shows what a test sets."""

    def __init__(self) -> None:
        self.seconds = 5.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(gpu_time, "time", SimpleNamespace(monotonic=clock))  # threads and locks keep the real one
    return clock


@pytest.fixture
def gpus(monkeypatch):
    """A function that makes PyTorch see GPUs."""

    def set_gpus(count, name=""):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)

    set_gpus(0)
    return set_gpus


# An H100 is $0.001097 a second, with 4 cores ($0.0000131 each) and 8 GiB ($0.00000222 each): $0.00116716.
@pytest.mark.parametrize(
    ("count", "name", "line"),
    [
        (2, "NVIDIA H100 80GB HBM3", "2 x NVIDIA H100 80GB HBM3 for 1000 s, about $2.33"),
        (1, "NVIDIA Future", "1 x NVIDIA Future for 1000 s"),
        (0, "", "1 x no GPU for 1000 s"),
    ],
)
def test_report_prints_the_cost_of_all_gpus_also_after_an_error(count, name, line, clock, gpus, capsys):
    gpus(count, name)
    with pytest.raises(ZeroDivisionError), report_gpu_time():
        clock.seconds += 1000
        raise ZeroDivisionError
    assert capsys.readouterr().out == f"{line}\n"


def test_attempts_of_a_call_add_up_and_those_of_another_do_not(clock, gpus, capsys):
    shared = SharedDict()
    gpus(1, "NVIDIA H100 80GB HBM3")
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), count_attempt(Call("mine", shared)):
            clock.seconds += 400
            raise ZeroDivisionError
        clock.seconds += 10_000  # between the attempts nothing is rented
    with count_attempt(Call("mine", shared)) as counted:
        clock.seconds += 50
        assert (counted.seconds, counted.attempts) == (850, 3)
    assert Call("mine", shared).used_time() == (850, 3)
    assert Call("other", shared).used_time() == (0, 0)
    assert capsys.readouterr().out.splitlines()[-1] == (
        "1 x NVIDIA H100 80GB HBM3 for 850 s in 3 attempts, about $0.99"
    )


class KilledDict(SharedDict):
    """A dictionary that no longer hears of a container that was killed."""

    is_killed = False

    def put(self, key, value, *, skip_if_exists=False):
        return not self.is_killed and super().put(key, value, skip_if_exists=skip_if_exists)


def test_crash_loses_no_more_than_the_time_since_the_last_note(clock, gpus, monkeypatch):
    shared = KilledDict()
    monkeypatch.setattr(gpu_time, "HEARTBEAT", 0.001)
    with count_attempt(Call("mine", shared)):
        assert shared.values["time of mine"] == (0, 1), "an attempt that crashes at once is counted too"
        clock.seconds += 300
        wait_for(lambda: shared.values["time of mine"] == (300, 1))
        shared.is_killed = True
        clock.seconds += 10
    shared.is_killed = False
    with count_attempt(Call("mine", shared)) as counted:
        assert (counted.seconds, counted.attempts) == (300, 2)


def test_no_thread_is_left_when_an_attempt_ends(clock, gpus):
    before = threading.enumerate()
    with count_attempt(Call("mine", SharedDict())):
        assert len(threading.enumerate()) == len(before) + 1
    assert threading.enumerate() == before


def test_file_of_a_run_has_the_time_of_each_call_that_trained_it(tmp_path, clock, gpus):
    gpus(2, "NVIDIA L4")
    first = GPUTime()
    for seconds in (10, 20):  # a later note of the same call replaces the earlier one
        clock.seconds += seconds
        first.write(tmp_path, "first")
    gpus(0)
    second = GPUTime(earlier_seconds=100.0, attempts=2)
    clock.seconds += 0.26
    second.write(tmp_path, "second")
    assert json.loads((tmp_path / GPU_TIME_FILE).read_text()) == {
        "first": {"gpu": "L4", "count": 2, "seconds": 30.0, "attempts": 1},
        "second": {"gpu": "", "count": 0, "seconds": 100.3, "attempts": 2},
    }


@pytest.mark.parametrize("damaged", ["", "[]", "{", "null"])
def test_damaged_file_of_gpu_time_is_replaced(tmp_path, gpus, damaged):
    (tmp_path / GPU_TIME_FILE).write_text(damaged)
    GPUTime().write(tmp_path, "mine")
    assert set(json.loads((tmp_path / GPU_TIME_FILE).read_text())) == {"mine"}
